//! Configurations of an end of the transport, made of the newest credentials whenever those have been replaced.

use std::sync::Arc;

use parking_lot::Mutex;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ServerConfig, VarInt};

use super::{QuicError, transport_config};
use crate::log_gate::LogGate;
use crate::transport::tls::{Credentials, LiveCredentials};

/// What a connection may send before its certificate has been looked at, in bytes: there may be none.
const UNPROVEN_WINDOW: u32 = 1 << 20;

/// For connections to or from this machine, and for all others.
type Both<T> = [T; 2];
type Make<T> = Box<dyn Fn(&Credentials) -> Result<Both<T>, QuicError> + Send + Sync>;

/// See the module.
pub(super) struct Configs<T> {
    live: LiveCredentials,
    make: Make<T>,
    made: Mutex<(Arc<Credentials>, Both<T>)>,
    gate: LogGate,
}

impl<T: Clone> Configs<T> {
    pub(super) fn new(live: &LiveCredentials, make: Make<T>) -> Result<Self, QuicError> {
        let current = live.current();
        let both = make(&current)?;
        Ok(Self {
            live: live.clone(),
            make,
            made: Mutex::new((current, both)),
            gate: LogGate::default(),
        })
    }

    /// The configuration for a connection that begins now.
    pub(super) fn get(&self, loopback: bool) -> T {
        let current = self.live.current();
        let mut made = self.made.lock();
        if !Arc::ptr_eq(&made.0, &current) {
            match (self.make)(&current) {
                Ok(both) => *made = (current, both),
                Err(error) => {
                    if let Some(held) = self.gate.pass() {
                        tracing::error!(%error, more = held, "new certificates cannot be used");
                    }
                }
            }
        }
        made.1[usize::from(loopback)].clone()
    }
}

/// What a server accepts connections with.
pub(super) fn of_server(
    live: &LiveCredentials,
    strangers: bool,
) -> Result<Configs<Arc<ServerConfig>>, QuicError> {
    let make = move |credentials: &Credentials| {
        let crypto = QuicServerConfig::try_from(credentials.server_tls(strangers)?)
            .map_err(|error| QuicError::Config(error.to_string()))?;
        let crypto: Arc<QuicServerConfig> = Arc::new(crypto);
        Ok([false, true].map(|loopback| {
            let mut transport = transport_config(loopback);
            if strangers {
                transport.receive_window(VarInt::from_u32(UNPROVEN_WINDOW));
            }
            let mut config = ServerConfig::with_crypto(Arc::clone(&crypto) as _);
            config.transport_config(Arc::new(transport));
            Arc::new(config)
        }))
    };
    Configs::new(live, Box::new(make))
}

/// What a caller makes connections with.
pub(super) fn of_client(live: &LiveCredentials) -> Result<Configs<ClientConfig>, QuicError> {
    let make = |credentials: &Credentials| client_configs(credentials.client_tls()?);
    Configs::new(live, Box::new(make))
}

/// Both configurations of a caller with this TLS.
pub(super) fn client_configs(tls: rustls::ClientConfig) -> Result<Both<ClientConfig>, QuicError> {
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|error| QuicError::Config(error.to_string()))?;
    let crypto: Arc<QuicClientConfig> = Arc::new(crypto);
    Ok([false, true].map(|loopback| {
        let mut config = ClientConfig::new(Arc::clone(&crypto) as _);
        config.transport_config(Arc::new(transport_config(loopback)));
        config
    }))
}

//! Asks the control plane, through the first of several daemons that answers.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mortar_protocol::admin::{AdminReply, AdminRequest};
use mortar_protocol::fop::Request;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::NodeId;
use mortar_protocol::transport::quic::QuicTransport;
use mortar_protocol::transport::{Lost, Transport};

use super::flags::{self, Globals};
use crate::credentials;

/// How long a daemon has to be reached.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a command may take unless told otherwise.
const COMMAND: Duration = Duration::from_secs(120);
/// A daemon that has not answered for this long gets another one beside it.
const NEXT_AFTER: Duration = Duration::from_millis(300);
/// Where a daemon listens unless told otherwise.
const DEFAULT: &str = "127.0.0.1:24007";

/// A daemon that may be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Server {
    name: String,
    addrs: Vec<SocketAddr>,
}

/// A way to the control plane.
pub(crate) struct Admin {
    runtime: tokio::runtime::Runtime,
    transport: QuicTransport,
    /// Best first.
    servers: Vec<Server>,
    /// The first of [`Self::servers`] has answered.
    chosen: bool,
    limit: Duration,
}

fn resolve(server: &str) -> Result<Vec<SocketAddr>, String> {
    let port = |text: &str| text.parse::<u16>().is_ok();
    let v6 = server.parse::<std::net::Ipv6Addr>().is_ok();
    let with_port = if v6 {
        format!("[{server}]:24007")
    } else if server.rsplit_once(':').is_some_and(|(_, end)| port(end)) {
        server.to_owned()
    } else {
        format!("{server}:24007")
    };
    let addrs: Vec<SocketAddr> = with_port
        .to_socket_addrs()
        .map_err(|err| format!("{server}: {err}"))?
        .collect();
    if addrs.is_empty() {
        Err(format!("{server} has no address"))
    } else {
        Ok(addrs)
    }
}

/// The daemons to ask: as given, else `MORTAR_SERVER`, else this node's at its default port.
fn names(given: &[String], variable: Option<&str>) -> Vec<String> {
    let mut names = given.to_vec();
    if names.is_empty() {
        names.extend(flags::servers(variable.unwrap_or_default()));
    }
    if names.is_empty() {
        names.push(DEFAULT.to_owned());
    }
    names
}

impl Admin {
    /// Finds the daemons and this user's certificate.
    ///
    /// # Errors
    /// One line for a person.
    pub(crate) fn connect(globals: &Globals) -> Result<Self, String> {
        let variable = std::env::var("MORTAR_SERVER").ok();
        let mut servers = Vec::new();
        let mut unresolved = Vec::new();
        for name in names(&globals.servers, variable.as_deref()) {
            match resolve(&name) {
                Ok(addrs) => servers.push(Server { name, addrs }),
                Err(error) => unresolved.push(error),
            }
        }
        if servers.is_empty() {
            return Err(unresolved.join("; "));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| format!("no runtime: {err}"))?;
        let addrs: Vec<SocketAddr> = servers
            .iter()
            .flat_map(|server| server.addrs.iter().copied())
            .collect();
        let credentials = credentials::find_for_commands(&addrs).map_err(|err| err.to_string())?;
        let transport = {
            let _inside = runtime.enter();
            QuicTransport::new(&credentials, runtime.handle())
                .map_err(|err| format!("transport: {err}"))?
        };
        transport.set_connect_time(CONNECT);
        Ok(Self {
            runtime,
            transport,
            servers,
            chosen: false,
            limit: globals.timeout.unwrap_or(COMMAND),
        })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// One line for a person, if no daemon answers.
    pub(crate) fn ask(&mut self, request: &AdminRequest) -> Result<AdminReply, String> {
        if !self.chosen && self.servers.len() > 1 {
            self.choose()?;
        }
        // Asked of one daemon only: a command must not be done twice.
        let server = self.servers.first().ok_or("there is no server to ask")?;
        let transport = &self.transport;
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(self.limit, call(transport, server, request)).await
        });
        match answer {
            Ok(Ok(reply)) => {
                self.chosen = true;
                Ok(reply)
            }
            Ok(Err(fault)) => Err(fault.text(&server.name)),
            Err(_) => Err(format!(
                "{} has not answered within {} s; look whether the command was done (--timeout=N waits longer)",
                server.name,
                self.limit.as_secs()
            )),
        }
    }

    /// Puts the daemon that answers first in front.
    fn choose(&mut self) -> Result<(), String> {
        let servers = &self.servers;
        let transport = &self.transport;
        let first = self.runtime.block_on(async {
            let race = first_answer(servers.len(), |at| {
                call(transport, &servers[at], &AdminRequest::Node)
            });
            tokio::time::timeout(self.limit, race).await
        });
        match first {
            Ok(Ok(at)) => {
                self.servers.swap(0, at);
                Ok(())
            }
            Ok(Err(faults)) => Err(all_failed(servers, &faults)),
            Err(_) => Err(format!(
                "no server has answered within {} s",
                self.limit.as_secs()
            )),
        }
    }
}

/// Why a call has no answer.
#[derive(Debug)]
enum Fault {
    Lost(Lost),
    Unreadable(String),
}

impl Fault {
    fn text(&self, server: &str) -> String {
        match self {
            Self::Unreadable(error) => {
                format!("{server} answered something this version cannot read: {error}")
            }
            Self::Lost(Lost::Rejected) => format!(
                "{server} refused this user's certificate: run as root or as the daemon's user on one of its nodes"
            ),
            Self::Lost(Lost::NotSent) => format!(
                "no mortard answers at {server} within {} s: is it running, and is --server (or MORTAR_SERVER) right?",
                CONNECT.as_secs()
            ),
            Self::Lost(Lost::Unknown) => format!(
                "the connection to {server} was lost before it answered; look whether the command was done"
            ),
        }
    }
}

/// Why none of several servers can be used.
fn all_failed(servers: &[Server], faults: &[(usize, Fault)]) -> String {
    let silent = |fault: &Fault| matches!(fault, Fault::Lost(Lost::NotSent));
    let name = |at: &usize| servers.get(*at).map_or("", |server| server.name.as_str());
    let quiet: Vec<&str> = faults
        .iter()
        .filter(|(_, fault)| silent(fault))
        .map(|(at, _)| name(at))
        .collect();
    let mut texts: Vec<String> = faults
        .iter()
        .filter(|(_, fault)| !silent(fault))
        .map(|(at, fault)| fault.text(name(at)))
        .collect();
    if !quiet.is_empty() {
        texts.push(Fault::Lost(Lost::NotSent).text(&quiet.join(", ")));
    }
    texts.join("; ")
}

async fn call(
    transport: &QuicTransport,
    server: &Server,
    request: &AdminRequest,
) -> Result<AdminReply, Fault> {
    let request = Request::Admin(request.clone());
    let unreadable = |error: String| Fault::Unreadable(error);
    let frame = Frame::new(&request, Bytes::new()).map_err(|err| unreadable(err.to_string()))?;
    let answer = transport.call(NodeId(0), &server.addrs, frame).await;
    answer
        .map_err(Fault::Lost)?
        .message_of_any_length()
        .map_err(|err| unreadable(err.to_string()))
}

/// The first of `count` calls that succeeds. The next is begun once those before have failed or [`NEXT_AFTER`] has
/// passed; all that were begun go on.
async fn first_answer<T, E, F>(
    count: usize,
    begin: impl Fn(usize) -> F,
) -> Result<usize, Vec<(usize, E)>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut calls = FuturesUnordered::new();
    let mut faults = Vec::new();
    let mut begun = 0;
    loop {
        if begun < count {
            let call = begin(begun);
            let at = begun;
            calls.push(async move { (at, call.await) });
            begun += 1;
        }
        let pause = tokio::time::sleep(NEXT_AFTER);
        tokio::pin!(pause);
        loop {
            let done = tokio::select! {
                biased;
                done = calls.next() => done,
                () = &mut pause, if begun < count => break,
            };
            match done {
                Some((at, Ok(_))) => return Ok(at),
                Some((at, Err(fault))) => faults.push((at, fault)),
                None if begun < count => break,
                None => return Err(faults),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_come_from_flag_variable_or_default() {
        let given = ["a".to_owned(), "b:1".to_owned()];
        assert_eq!(names(&given, Some("c")), ["a", "b:1"]);
        assert_eq!(names(&[], Some("c, d:2,")), ["c", "d:2"]);
        assert_eq!(names(&[], Some("")), [DEFAULT]);
        assert_eq!(names(&[], None), [DEFAULT]);
    }

    #[test]
    fn addresses_have_a_port_or_the_usual_one() {
        for (text, addr) in [
            ("127.0.0.2", "127.0.0.2:24007"),
            ("127.0.0.2:7", "127.0.0.2:7"),
            ("::1", "[::1]:24007"),
            ("[::1]", "[::1]:24007"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(resolve(text), Ok(vec![addr.parse().unwrap()]), "{text}");
        }
        assert!(resolve("no.such.host.invalid").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_wins_and_silence_costs_little() {
        let begun = tokio::time::Instant::now();
        let first = first_answer(3, |at| async move {
            match at {
                0 => std::future::pending().await,
                1 => tokio::time::sleep(Duration::from_secs(3)).await,
                _ => {}
            }
            Ok::<(), ()>(())
        });
        assert_eq!(first.await, Ok(2));
        assert_eq!(begun.elapsed(), NEXT_AFTER * 2);
        // A refusal is not waited for.
        let begun = tokio::time::Instant::now();
        let first = first_answer(2, |at| async move { if at == 0 { Err(0) } else { Ok(()) } });
        assert_eq!(first.await, Ok(1));
        assert_eq!(begun.elapsed(), Duration::ZERO);
        // One that was begun first may still win.
        let first = first_answer(2, |at| async move {
            tokio::time::sleep(Duration::from_millis([400, 200][at])).await;
            Ok::<(), ()>(())
        });
        assert_eq!(first.await, Ok(0));
        let none = first_answer(2, |at| async move { Err::<(), usize>(at * 10) });
        assert_eq!(none.await, Err(vec![(0, 0), (1, 10)]));
    }

    #[test]
    fn what_is_wrong_with_several_is_one_line() {
        let server = |name: &str| Server {
            name: name.to_owned(),
            addrs: Vec::new(),
        };
        let servers = [server("a"), server("b"), server("c")];
        let faults = [
            (0, Fault::Lost(Lost::NotSent)),
            (1, Fault::Lost(Lost::Rejected)),
            (2, Fault::Lost(Lost::NotSent)),
        ];
        assert_eq!(
            all_failed(&servers, &faults),
            "b refused this user's certificate: run as root or as the daemon's user on one of its nodes; no mortard \
             answers at a, c within 3 s: is it running, and is --server (or MORTAR_SERVER) right?"
        );
    }
}

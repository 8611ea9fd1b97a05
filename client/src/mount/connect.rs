//! From a server's name to a connected volume.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use mortar_protocol::attr::{Cred, SetAttr};
use mortar_protocol::env::Env;
use mortar_protocol::ids::InodeId;
use mortar_protocol::options;
use mortar_protocol::transport::quic::QuicTransport;
use mortar_protocol::view::VolumeInfo;
use tokio::runtime::Handle;

use super::log;
use crate::credentials;
use crate::vfs::{Options, Vfs};
use crate::volume::Volume;

/// Connects to the volume `name` through one of `servers` (`HOST:PORT`). Its sets need not have opened.
///
/// # Errors
///
/// One line for a person.
pub(super) async fn connect(
    runtime: Handle,
    servers: Vec<String>,
    name: String,
    env: Arc<dyn Env>,
) -> Result<Volume, String> {
    let (names, blocking) = (servers.clone(), runtime.clone());
    let looked_up = tokio::task::spawn_blocking(move || {
        let addrs = resolve(&servers)?;
        let enrolment = credentials::enrol(&addrs).map_err(|error| error.to_string())?;
        Ok::<_, String>((addrs, enrolment))
    });
    let (addrs, enrolment) = looked_up.await.map_err(|error| error.to_string())??;
    let transport =
        QuicTransport::new(&enrolment.credentials, &runtime).map_err(|error| error.to_string())?;
    let reached = Volume::reach(env, Arc::new(transport), &addrs, &name).await;
    let volume = reached.map_err(|error| error.to_string())?;
    volume.set_resolve(Arc::new(move || {
        let names = names.clone();
        let found = blocking.spawn_blocking(move || resolve(&names).unwrap_or_default());
        Box::pin(async move { found.await.unwrap_or_default() })
    }));
    Ok(volume)
}

fn resolve(servers: &[String]) -> Result<Vec<SocketAddr>, String> {
    let mut addrs = Vec::new();
    let mut why = String::new();
    for server in servers {
        match server.to_socket_addrs() {
            Ok(found) => addrs.extend(found),
            Err(error) => why = format!("{server} cannot be found: {error}"),
        }
    }
    match addrs.is_empty() {
        true => Err(why),
        false => Ok(addrs),
    }
}

/// What a volume's options say about mounts.
pub(super) fn options_of(info: &VolumeInfo) -> Options {
    let defaults = Options::default();
    let value = |name: &str| info.options.get(name).map(String::as_str);
    Options {
        write_behind: value("performance.write-behind")
            .and_then(options::switch)
            .unwrap_or(defaults.write_behind),
        window: value("performance.write-behind-window-size")
            .and_then(options::size)
            .and_then(|size| usize::try_from(size).ok())
            .unwrap_or(defaults.window),
        atime: value("ctime.noatime").and_then(options::switch) == Some(false),
        ..defaults
    }
}

/// Follows changes of the volume's options until the mount ends. `no_atime`: whatever they say of atime, reads leave it
/// alone.
pub(super) async fn follow_options(vfs: Vfs<Volume>, no_atime: bool) {
    let info = vfs.backend().info();
    let (mut version, mut owner) = (info.version, owner_of(&info));
    let mut level = log::level_of(&info);
    if level.is_some() {
        log::set(level);
    }
    loop {
        let info = vfs.backend().newer_info(version).await;
        version = info.version;
        let options = options_of(&info);
        vfs.set_write_behind(options.write_behind, options.window);
        vfs.set_atime(options.atime && !no_atime);
        if log::level_of(&info) != level {
            level = log::level_of(&info);
            log::set(level);
        }
        if owner_of(&info) != owner {
            owner = owner_of(&info);
            own_root(&vfs).await;
        }
    }
}

/// Owner and group that the options give to the volume's root.
fn owner_of(info: &VolumeInfo) -> (Option<u32>, Option<u32>) {
    let value = |name: &str| info.options.get(name)?.parse().ok();
    (value("storage.owner-uid"), value("storage.owner-gid"))
}

/// Gives the volume's root to whom the options name. Only root can.
pub(super) async fn own_root(vfs: &Vfs<Volume>) {
    let (uid, gid) = owner_of(&vfs.backend().info());
    if (uid, gid) == (None, None) || !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok((root, _)) = vfs.getattr(InodeId::ROOT).await else {
        return;
    };
    let set = SetAttr {
        uid: uid.filter(|uid| *uid != root.uid),
        gid: gid.filter(|gid| *gid != root.gid),
        ..SetAttr::default()
    };
    if (set.uid, set.gid) == (None, None) {
        return;
    }
    match vfs.setattr(Cred::default(), InodeId::ROOT, set, None).await {
        Ok((root, _)) => tracing::info!(root.uid, root.gid, "the volume's root has a new owner"),
        Err(errno) => tracing::error!(?errno, "the volume's root cannot be given to its owner"),
    }
}

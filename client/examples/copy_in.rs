//! Copies a directory tree into a volume through the library, reads it back and compares.
//!
//! ```text
//! copy_in SERVER:PORT VOLUME SOURCE [TARGET]
//! ```
//!
//! Prints the number of files, directories, links and bytes. Must run on a node, as root or as the daemon's user (who
//! get their certificate from the daemon's socket).

use std::collections::BTreeMap;
use std::error::Error;
use std::net::ToSocketAddrs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use mortar_client::credentials;
use mortar_client::volume::paths::Paths;
use mortar_client::volume::{NewInode, Volume};
use mortar_protocol::attr::{Cred, FileKind};
use mortar_protocol::env_real::RealEnv;
use mortar_protocol::transport::quic::QuicTransport;

/// What was copied: files and links by path (with the hash of their contents), directories.
#[derive(Default)]
struct Copied {
    contents: BTreeMap<Vec<u8>, (FileKind, blake3::Hash)>,
    dirs: u64,
    bytes: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (server, volume, source, target) = match args.as_slice() {
        [server, volume, source] => (server, volume, source, "/"),
        [server, volume, source, target] => (server, volume, source, target.as_str()),
        _ => return Err("usage: copy_in SERVER:PORT VOLUME SOURCE [TARGET]".into()),
    };
    let servers: Vec<_> = server.to_socket_addrs()?.collect();
    let credentials = credentials::find(&servers)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let env = Arc::new(RealEnv::new(runtime.handle().clone()));
    let transport = QuicTransport::new(&credentials, runtime.handle())?;
    let ends = transport.clone();
    runtime.block_on(async {
        let volume = Volume::connect(env, Arc::new(transport), &servers, volume).await?;
        let paths = volume.paths(Cred::default());
        let mut copied = Copied::default();
        paths
            .create_dir_all(target.as_bytes())
            .await
            .map_err(|errno| format!("{target}: {errno:?}"))?;
        copy(&paths, Path::new(source), target.as_bytes(), &mut copied).await?;
        volume
            .sync_all()
            .await
            .map_err(|errno| format!("sync: {errno:?}"))?;
        verify(&paths, &copied).await?;
        println!(
            "copied and verified: {} files and links, {} directories, {} bytes",
            copied.contents.len(),
            copied.dirs,
            copied.bytes
        );
        volume.close().await;
        ends.close().await;
        Ok(())
    })
}

/// Copies what `source` holds into the directory `target`.
async fn copy(
    paths: &Paths,
    source: &Path,
    target: &[u8],
    copied: &mut Copied,
) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(source)? {
        let entry = entry?;
        let from = entry.path();
        let to = [target, b"/", entry.file_name().as_bytes()].concat();
        let told = |errno| format!("{}: {errno:?}", from.display());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            paths.create_dir_all(&to).await.map_err(told)?;
            copied.dirs += 1;
            Box::pin(copy(paths, &from, &to, copied)).await?;
        } else if kind.is_symlink() {
            let link = std::fs::read_link(&from)?;
            let link = Bytes::copy_from_slice(link.as_os_str().as_bytes());
            let hash = blake3::hash(&link);
            let made = paths.make(&to, NewInode::symlink(link)).await;
            made.map_err(told)?;
            copied.contents.insert(to, (FileKind::Symlink, hash));
        } else if kind.is_file() {
            let contents = std::fs::read(&from)?;
            let perm = entry.metadata()?.permissions().mode() & 0o7777;
            copied.bytes += contents.len() as u64;
            let hash = blake3::hash(&contents);
            let file = paths.create(&to, perm).await.map_err(told)?;
            let written = file.write_at(0, contents.into()).await;
            written.map_err(told)?;
            copied.contents.insert(to, (FileKind::File, hash));
        }
    }
    Ok(())
}

/// Reads everything back.
async fn verify(paths: &Paths, copied: &Copied) -> Result<(), Box<dyn Error>> {
    for (path, (kind, hash)) in &copied.contents {
        let read = match kind {
            FileKind::Symlink => paths.read_link(path).await,
            _ => paths.read(path).await,
        };
        let shown = String::from_utf8_lossy(path);
        let contents = read.map_err(|errno| format!("{shown}: {errno:?}"))?;
        if blake3::hash(&contents) != *hash {
            return Err(format!("{shown}: reads back different").into());
        }
    }
    Ok(())
}

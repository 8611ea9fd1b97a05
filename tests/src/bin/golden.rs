//! Makes the golden files that do not exist yet; see `mortar_tests::golden`.

use std::path::Path;
use std::process::ExitCode;

use mortar_server::superblock::MIN_SIZE;
use mortar_tests::golden::{self, brick, image, messages};

fn make(path: &Path, bytes: impl FnOnce() -> Result<Vec<u8>, String>) -> Result<(), String> {
    if path.exists() {
        println!("{} exists and stays as it is", path.display());
        return Ok(());
    }
    let bytes = bytes()?;
    std::fs::write(path, &bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("{}: {} bytes", path.display(), bytes.len());
    Ok(())
}

fn main() -> ExitCode {
    let dir = golden::dir();
    let image = || Ok(image::pack(&*brick::make()?, MIN_SIZE));
    let made = make(&dir.join("messages-1.txt"), || {
        Ok(messages::file().into_bytes())
    })
    .and_then(|()| make(&dir.join("brick-1.image"), image));
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

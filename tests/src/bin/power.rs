//! What runs in the virtual machine of the suite `power`: writes on a mount and says on the console what was promised,
//! or says what is there. `power write DIR` never ends; `power show DIR` lists every file with the versions of its
//! blocks.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use mortar_tests::real::power::content::{BLOCK, fill, version_of};

fn say(text: &str) {
    // One write, so that lines of several threads and of the kernel do not mix.
    let line = format!("\n@ {text} ;\n");
    let _ = io::Write::write_all(&mut io::stdout().lock(), line.as_bytes());
}

fn write_blocks(file: &File, name: &str, version: u64, blocks: u64) -> io::Result<()> {
    let mut data = Vec::new();
    for block in 0..blocks {
        data.extend_from_slice(&fill(name, version, block));
    }
    file.write_all_at(&data, 0)
}

/// Files that are written and synced.
fn synced(dir: &Path) -> io::Result<()> {
    for n in 0u64.. {
        let (name, blocks) = (format!("s{n}"), 1 + n % 9);
        let file = File::create(dir.join(&name))?;
        write_blocks(&file, &name, 1, blocks)?;
        file.sync_all()?;
        say(&format!("synced {name} {blocks}"));
    }
    Ok(())
}

/// Files in a directory that is synced after every few of them; they are not.
fn named(dir: &Path) -> io::Result<()> {
    let names = dir.join("names");
    fs::create_dir(&names)?;
    for n in 0u64.. {
        let name = format!("n{n}");
        let file = File::create(names.join(&name))?;
        write_blocks(&file, &name, 1, 1)?;
        drop(file);
        if n % 4 == 3 {
            File::open(&names)?.sync_all()?;
            say(&format!("named {n}"));
        }
    }
    Ok(())
}

/// Files that are written and closed.
fn closed(dir: &Path) -> io::Result<()> {
    for n in 0u64.. {
        let (name, blocks) = (format!("c{n}"), 1 + n % 20);
        let file = File::create(dir.join(&name))?;
        write_blocks(&file, &name, 1, blocks)?;
        drop(file);
        say(&format!("closed {name} {blocks}"));
        #[allow(clippy::disallowed_methods)] // a real process
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A file whose blocks are overwritten again and again, each time synced.
fn overwritten(dir: &Path) -> io::Result<()> {
    let name = "over";
    let file = File::create(dir.join(name))?;
    for version in 1.. {
        say(&format!("overwriting {version}"));
        for block in 0..8 {
            file.write_all_at(&fill(name, version, block), block * BLOCK as u64)?;
        }
        file.sync_data()?;
        say(&format!("overwritten {version}"));
    }
    Ok(())
}

/// A file that is replaced by another one under its name.
fn replaced(dir: &Path) -> io::Result<()> {
    let (new, current) = (dir.join("new"), dir.join("current"));
    for version in 1.. {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&new)?;
        write_blocks(&file, "current", version, 5)?;
        file.sync_all()?;
        say(&format!("replacing {version}"));
        fs::rename(&new, &current)?;
        File::open(dir)?.sync_all()?;
        say(&format!("replaced {version}"));
    }
    Ok(())
}

fn write(dir: &Path) {
    type Work = fn(&Path) -> io::Result<()>;
    let works: [(&str, Work); 5] = [
        ("synced", synced),
        ("named", named),
        ("closed", closed),
        ("overwritten", overwritten),
        ("replaced", replaced),
    ];
    say("writing");
    std::thread::scope(|scope| {
        for (name, work) in works {
            scope.spawn(move || {
                if let Err(error) = work(dir) {
                    say(&format!("failed {name}: {error}"));
                }
            });
        }
    });
}

/// `PATH LEN VERSION*BLOCKS ...`; a block that is not what was written has the version `bad`.
fn show(base: &Path, dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            show(base, &path)?;
            continue;
        }
        let shown = path.strip_prefix(base).unwrap_or(&path).display();
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = if name == "new" { "current" } else { &name };
        let data = fs::read(&path)?;
        let mut runs: Vec<(String, u64)> = Vec::new();
        for (block, bytes) in data.chunks(BLOCK).enumerate() {
            let version = match version_of(name, block as u64, bytes) {
                Some(version) => version.to_string(),
                None => "bad".to_owned(),
            };
            match runs.last_mut() {
                Some((last, count)) if *last == version => *count += 1,
                _ => runs.push((version, 1)),
            }
        }
        let mut text = format!("file {shown} {}", data.len());
        for (version, count) in runs {
            let _ = write!(text, " {version}*{count}");
        }
        say(&text);
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, what, dir] = &args[..] else {
        return ExitCode::FAILURE;
    };
    match what.as_str() {
        "write" => write(Path::new(dir)),
        _ => {
            let dir = Path::new(dir);
            match show(dir, dir) {
                Ok(()) => say("shown"),
                Err(error) => say(&format!("failed show: {error}")),
            }
        }
    }
    ExitCode::SUCCESS
}

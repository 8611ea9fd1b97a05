//! The control plane's durable state: a log of commands and a snapshot, in one file of the data directory.
//!
//! Callers propose commands and get their outcomes. Today one node decides alone and a command counts once it is in
//! the file; a consensus log takes this place later without touching callers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

use super::machine::{Command, Outcome, State};

/// Name of the file in the data directory.
pub const FILE: &str = "control.redb";
/// Commands between two snapshots.
const SNAPSHOT_EVERY: u64 = 256;
/// Version of the records in the file.
const FORMAT: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");

/// Why the control plane's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The file cannot be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// It was written by a newer version.
    #[error(
        "{path} has format {found}, this mortard reads up to format {FORMAT}: use the newer version again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
}

/// The durable state machine of one node.
pub struct Control {
    path: PathBuf,
    database: Database,
    state: RwLock<Arc<State>>,
    /// One command at a time, in the order of the log.
    order: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Control({}, {})",
            self.path.display(),
            self.state().applied
        )
    }
}

impl Control {
    /// Opens the state in `dir`, or begins one.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub fn open(dir: &Path) -> Result<Self, ControlError> {
        let path = dir.join(FILE);
        let fail = |why: String| ControlError::File {
            path: path.clone(),
            why,
        };
        let database = Database::builder()
            .set_cache_size(1 << 20)
            .create(&path)
            .map_err(|error| fail(error.to_string()))?;
        Self::over(path, database)
    }

    /// A state that lives in memory and ends with it: for simulations.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn in_memory() -> Result<Self, ControlError> {
        let path = PathBuf::from("memory");
        let database = Database::builder()
            .set_cache_size(1 << 20)
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .map_err(|error| ControlError::File {
                path: path.clone(),
                why: error.to_string(),
            })?;
        Self::over(path, database)
    }

    fn over(path: PathBuf, database: Database) -> Result<Self, ControlError> {
        let (found, state) = load(&database).map_err(|why| ControlError::File {
            path: path.clone(),
            why,
        })?;
        if found > FORMAT {
            return Err(ControlError::Newer { path, found });
        }
        let (changed, _) = watch::channel(state.applied);
        Ok(Self {
            path,
            database,
            state: RwLock::new(Arc::new(state)),
            order: tokio::sync::Mutex::new(()),
            changed,
        })
    }

    /// The state as of the newest command.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    /// Tells the number of the newest command whenever there is a new one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Makes a command durable and applies it.
    ///
    /// # Errors
    /// If it cannot be made durable; it has then not been applied.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ControlError> {
        let _turn = self.order.lock().await;
        let mut state = (*self.state()).clone();
        let outcome = state.apply(&command);
        self.write(&command, &state)
            .map_err(|why| ControlError::File {
                path: self.path.clone(),
                why,
            })?;
        let applied = state.applied;
        *self.state.write() = Arc::new(state);
        self.changed.send_replace(applied);
        Ok(outcome)
    }

    fn write(&self, command: &Command, state: &State) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let bytes = postcard::to_stdvec(command).map_err(|error| text(&error))?;
        let mut write = self.database.begin_write().map_err(|error| text(&error))?;
        write
            .set_durability(Durability::Immediate)
            .map_err(|error| text(&error))?;
        {
            let mut log = write.open_table(LOG).map_err(|error| text(&error))?;
            log.insert(state.applied, bytes.as_slice())
                .map_err(|error| text(&error))?;
            if state.applied.is_multiple_of(SNAPSHOT_EVERY) {
                let bytes = postcard::to_stdvec(state).map_err(|error| text(&error))?;
                let mut snapshot = write.open_table(SNAPSHOT).map_err(|error| text(&error))?;
                snapshot
                    .insert("state", bytes.as_slice())
                    .map_err(|error| text(&error))?;
                log.retain(|number, _| number > state.applied)
                    .map_err(|error| text(&error))?;
            }
        }
        write.commit().map_err(|error| text(&error))
    }
}

/// Reads snapshot and log; makes the tables of a new file. Also gives the file's format.
fn load(database: &Database) -> Result<(u64, State), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let write = database.begin_write().map_err(|error| text(&error))?;
    let found = {
        let mut meta = write.open_table(META).map_err(|error| text(&error))?;
        let found = meta
            .get("format")
            .map_err(|error| text(&error))?
            .map(|value| value.value());
        if found.is_none() {
            meta.insert("format", FORMAT)
                .map_err(|error| text(&error))?;
        }
        write.open_table(LOG).map_err(|error| text(&error))?;
        write.open_table(SNAPSHOT).map_err(|error| text(&error))?;
        found.unwrap_or(FORMAT)
    };
    write.commit().map_err(|error| text(&error))?;
    if found > FORMAT {
        return Ok((found, State::default()));
    }
    let read = database.begin_read().map_err(|error| text(&error))?;
    let snapshot = read.open_table(SNAPSHOT).map_err(|error| text(&error))?;
    let mut state = match snapshot.get("state").map_err(|error| text(&error))? {
        Some(bytes) => postcard::from_bytes(bytes.value())
            .map_err(|error| format!("the snapshot is damaged: {error}"))?,
        None => State::default(),
    };
    let log = read.open_table(LOG).map_err(|error| text(&error))?;
    for record in log.iter().map_err(|error| text(&error))? {
        let (number, bytes) = record.map_err(|error| text(&error))?;
        if number.value() != state.applied + 1 {
            return Err(format!(
                "the log goes from command {} to {}",
                state.applied,
                number.value()
            ));
        }
        let command: Command = postcard::from_bytes(bytes.value())
            .map_err(|error| format!("command {} is damaged: {error}", number.value()))?;
        state.apply(&command);
    }
    Ok((found, state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::ids::NodeId;

    fn node(number: u128) -> Command {
        Command::Node {
            node: NodeId(number),
            addrs: Vec::new(),
        }
    }

    #[tokio::test]
    async fn survives_being_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut before = None;
        // Across a snapshot.
        for round in 0..3 {
            let control = Control::open(dir.path()).unwrap();
            if let Some(before) = before {
                assert_eq!(*control.state(), before);
            }
            for number in 0..100 {
                let outcome = control.propose(node(round * 100 + number)).await.unwrap();
                assert_eq!(outcome, Outcome::Done);
            }
            before = Some((*control.state()).clone());
        }
        assert_eq!(before.unwrap().nodes.len(), 300);
    }

    #[tokio::test]
    async fn watchers_hear_of_commands() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        let mut watch = control.watch();
        control.propose(node(1)).await.unwrap();
        watch.changed().await.unwrap();
        assert_eq!(*watch.borrow(), 1);
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Control::open(dir.path()).unwrap());
        let database = Database::create(dir.path().join(FILE)).unwrap();
        let write = database.begin_write().unwrap();
        write
            .open_table(META)
            .unwrap()
            .insert("format", FORMAT + 1)
            .unwrap();
        write.commit().unwrap();
        drop(database);
        let error = Control::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("format 2") && error.contains("format 1"),
            "{error}"
        );
    }
}

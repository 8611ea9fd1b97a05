//! The flags that every command has, before its words or among them, and what the program is called.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use super::words;

/// The name the program was called by. It answers to gluster's, so that scripts written for it run unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// `mortar`, or any other name.
    Mortar,
    /// `gluster`.
    Gluster,
}

impl Program {
    /// From the first argument of the process.
    pub(crate) fn of(name: Option<&OsStr>) -> Self {
        let name = name.map(Path::new).and_then(Path::file_name);
        if name == Some(OsStr::new("gluster")) {
            Self::Gluster
        } else {
            Self::Mortar
        }
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mortar => "mortar",
            Self::Gluster => "gluster",
        }
    }

    /// How it is used, in short.
    pub(crate) fn usage(self) -> String {
        let words = match self {
            Self::Gluster => "<help> <peer> <pool> <volume>",
            Self::Mortar => {
                "<help> <peer> <pool> <volume> <cluster> <operation> <mount> <stats> <brick> <demo>"
            }
        };
        format!(
            "\n Usage: {} [options] {words}\n Options:\n --help  Shows the help information\n --version  Shows the \
             version\n --print-logdir  Shows the log directory\n --print-statedumpdir Shows the state dump directory\n\n",
            self.name()
        )
    }

    /// What `--version` prints. Scripts read gluster's number from the first line.
    pub(crate) fn version(self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        match self {
            Self::Mortar => format!("mortar {version}\n"),
            Self::Gluster => format!("glusterfs 10.3 (mortar {version})\n"),
        }
    }
}

/// The form of what is printed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Form {
    /// For people, as gluster.
    #[default]
    Text,
    /// gluster's `--xml`.
    Xml,
    /// `--json`.
    Json,
}

/// Whether questions are asked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Mode {
    /// If somebody can answer: standard input is a terminal.
    #[default]
    Terminal,
    /// Never; the answer is yes.
    Script,
    /// Always; the answer is read from standard input.
    Interactive,
}

/// Something asked for by a flag in place of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Show {
    /// `--help`
    Help,
    /// `--version`
    Version,
    /// `--print-logdir`
    LogDir,
    /// `--print-statedumpdir`
    DumpDir,
}

/// The flags that every command has.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Globals {
    /// Daemons to ask, HOST\[:PORT\]; as typed, and split at commas.
    pub(crate) servers: Vec<String>,
    /// Whether questions are asked.
    pub(crate) mode: Mode,
    /// The form of what is printed.
    pub(crate) form: Form,
    /// How long a command may take.
    pub(crate) timeout: Option<Duration>,
    /// In place of a command.
    pub(crate) show: Option<Show>,
}

/// An understood command line.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Line {
    /// A command of words.
    Words(Globals, Vec<String>),
    /// A command with flags of its own: its full name, and what follows it.
    Tool(Globals, &'static str, Vec<OsString>),
}

/// Commands of words.
pub(crate) const FAMILIES: &[&str] = &["volume", "peer", "pool", "cluster", "operation", "help"];
/// Commands with flags of their own.
pub(crate) const TOOLS: &[&str] = &["mount", "stats", "brick", "demo"];

/// Servers as typed, one or several with commas between them.
pub(crate) fn servers(text: &str) -> impl Iterator<Item = String> + '_ {
    let servers = text.split(',').map(str::trim);
    servers
        .filter(|server| !server.is_empty())
        .map(str::to_owned)
}

/// Takes the flags off a command line.
///
/// # Errors
/// A line about the flag that is not known.
pub(crate) fn parse(args: &[OsString]) -> Result<Line, String> {
    let mut globals = Globals::default();
    let mut words: Vec<String> = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(arg) = arg.to_str() else {
            return Err(format!("{} is no UTF-8", arg.to_string_lossy()));
        };
        if words.is_empty() && !arg.starts_with('-') {
            let all: Vec<&str> = FAMILIES.iter().chain(TOOLS).copied().collect();
            if let Ok(word) = words::pick(arg, &all, 0)
                && TOOLS.contains(&word)
            {
                return Ok(Line::Tool(globals, word, args.cloned().collect()));
            }
        }
        let creates = words.len() > 1;
        match arg.strip_prefix("--") {
            // Belongs to `volume create`.
            Some(flag) if creates && flag.split('=').next() == Some("brick-size") => {
                words.push(arg.to_owned());
            }
            Some(flag) => {
                let (name, value) = match flag.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (flag, None),
                };
                take(&mut globals, name, value, || {
                    args.next().and_then(|arg| arg.to_str())
                })?;
            }
            None if arg == "-h" => globals.show = globals.show.or(Some(Show::Help)),
            None if arg == "-V" => globals.show = globals.show.or(Some(Show::Version)),
            None => words.push(arg.to_owned()),
        }
    }
    Ok(Line::Words(globals, words))
}

/// Takes one flag; `next` gives the argument behind it.
fn take<'a>(
    globals: &mut Globals,
    name: &str,
    value: Option<&'a str>,
    next: impl FnOnce() -> Option<&'a str>,
) -> Result<(), String> {
    let unknown = || {
        let value = value.map(|value| format!("={value}")).unwrap_or_default();
        Err(format!("unrecognized option --{name}{value}"))
    };
    let needed = || {
        value
            .or_else(next)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| format!("--{name} needs a value, as in --{name}=VALUE"))
    };
    match name {
        "server" | "remote-host" => globals.servers.extend(servers(needed()?)),
        "mode" => {
            globals.mode = match needed()? {
                "script" => Mode::Script,
                "interactive" => Mode::Interactive,
                other => {
                    return Err(format!("--mode is script or interactive, not {other}"));
                }
            }
        }
        "timeout" => {
            let seconds = needed()?.parse().ok().filter(|n| (1..=86_400).contains(n));
            let seconds = seconds.ok_or("--timeout takes a number of seconds, 1 to 86400")?;
            globals.timeout = Some(Duration::from_secs(seconds));
        }
        // The command writes no log, and the daemon's socket is found by its address.
        "log-file" | "log-level" | "glusterd-sock" => {
            needed()?;
        }
        _ if value.is_some() => return unknown(),
        "xml" => globals.form = Form::Xml,
        "json" => globals.form = Form::Json,
        "wignore" | "wignore-partition" | "nolog" => {}
        "help" => globals.show = Some(Show::Help),
        "version" => globals.show = Some(Show::Version),
        "print-logdir" => globals.show = Some(Show::LogDir),
        "print-statedumpdir" => globals.show = Some(Show::DumpDir),
        _ => return unknown(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, String> {
        let args: Vec<OsString> = text.split_whitespace().map(Into::into).collect();
        parse(&args)
    }

    fn words(text: &str) -> (Globals, String) {
        match line(text) {
            Ok(Line::Words(globals, words)) => (globals, words.join(" ")),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn flags_stand_before_or_behind_the_words() {
        for text in [
            "--mode=script --xml volume info v",
            "volume info v --xml --mode=script",
            "volume --xml info --mode script v",
        ] {
            let (globals, words) = words(text);
            assert_eq!(words, "volume info v");
            assert_eq!((globals.mode, globals.form), (Mode::Script, Form::Xml));
        }
    }

    #[test]
    fn every_flag_of_gluster_is_known() {
        let (globals, words) = words(
            "--timeout=600 --remote-host=a --log-file=/f --log-level=INFO --nolog --wignore --wignore-partition \
             --glusterd-sock=/s --server b,c:1 --server=[::1]:2 peer status --json --mode=interactive",
        );
        assert_eq!(words, "peer status");
        assert_eq!(globals.servers, ["a", "b", "c:1", "[::1]:2"]);
        assert_eq!(globals.timeout, Some(Duration::from_secs(600)));
        assert_eq!(
            (globals.mode, globals.form),
            (Mode::Interactive, Form::Json)
        );
        for (text, show) in [
            ("--version", Show::Version),
            ("volume --help", Show::Help),
            ("--print-logdir", Show::LogDir),
            ("--print-statedumpdir", Show::DumpDir),
        ] {
            assert_eq!(self::words(text).0.show, Some(show), "{text}");
        }
    }

    #[test]
    fn unknown_flags_are_named() {
        for (text, what) in [
            ("volume list --foo", "unrecognized option --foo"),
            ("--xml=yes volume list", "unrecognized option --xml=yes"),
            ("--brick-size 1G", "unrecognized option --brick-size"),
            (
                "volume list --server",
                "--server needs a value, as in --server=VALUE",
            ),
            ("--mode=quiet", "--mode is script or interactive, not quiet"),
            (
                "--timeout=soon",
                "--timeout takes a number of seconds, 1 to 86400",
            ),
            (
                "--timeout=0",
                "--timeout takes a number of seconds, 1 to 86400",
            ),
        ] {
            assert_eq!(line(text), Err(what.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_size_of_bricks_belongs_to_create() {
        let (_, words) = words("volume create v h:/b --brick-size 1G --brick-size=2G force");
        assert_eq!(
            words,
            "volume create v h:/b --brick-size 1G --brick-size=2G force"
        );
    }

    #[test]
    fn tools_get_their_arguments_untouched() {
        let Ok(Line::Tool(globals, tool, args)) = line("--server=h bri check --xml /b") else {
            panic!("not a tool");
        };
        assert_eq!(
            (tool, args),
            ("brick", vec!["check".into(), "--xml".into(), "/b".into()])
        );
        assert_eq!(globals.servers, ["h"]);
        assert_eq!(globals.form, Form::Text);
    }

    #[test]
    fn the_program_answers_to_the_name_gluster() {
        for (name, program) in [
            ("/usr/sbin/gluster", Program::Gluster),
            ("gluster", Program::Gluster),
            ("mortar", Program::Mortar),
            ("./gluster/mortar", Program::Mortar),
        ] {
            assert_eq!(Program::of(Some(OsStr::new(name))), program, "{name}");
        }
        assert_eq!(Program::of(None), Program::Mortar);
        assert!(Program::Gluster.version().starts_with("glusterfs 10.3"));
    }
}

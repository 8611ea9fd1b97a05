//! The commands of `mortar`.
//!
//! Words and outputs are gluster's where it has the command, and the program answers to that name, too. Errors go to
//! standard error as one line: what, why, what to do; exit code 1.
//!
//! A family of commands has a module: it parses words, asks the [`world::World`] and formats the answers. Parsing and
//! formatting are pure.

mod admin;
mod brick;
mod cluster;
mod flags;
mod help;
mod peer;
mod said;
mod stats;
mod volume;
mod words;
mod world;
mod xml;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::demo::DemoArgs;
use crate::mount::MountArgs;
use flags::{FAMILIES, Form, Globals, Line, Mode, Program, Show, TOOLS};
use said::{Failed, Said};
use world::{Real, World};

/// Mortar: a distributed storage engine.
#[derive(Parser, Debug)]
#[command(name = "mortar", version, about, max_term_width = 100)]
struct Tools {
    /// The daemon to ask, HOST:PORT (default: MORTAR_SERVER, else 127.0.0.1:24007); may be given several times
    #[arg(long, global = true)]
    server: Vec<String>,
    /// `script` asks no questions
    #[arg(long, global = true)]
    mode: Option<String>,
    #[command(subcommand)]
    command: Tool,
}

/// Commands with flags of their own.
#[derive(Subcommand, Debug)]
enum Tool {
    /// Mount a volume: HOST:/NAME DIR [-o OPTIONS] [-f]
    Mount(MountArgs),
    /// Counts and latencies of file operations: of a mount (DIR) or of what a volume's bricks were asked (VOLUME)
    Stats(stats::StatsArgs),
    /// Look into bricks offline, read-only: info, check, ls, cat, export
    #[command(disable_help_flag = true)]
    Brick {
        /// Handed to `mortard brick`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Try Mortar: a replicated volume of three file bricks, mounted, in one command
    Demo(DemoArgs),
}

/// What a command of words is run with.
pub(crate) struct Context<'a> {
    /// What the program is called.
    pub(crate) program: Program,
    /// What is printed.
    pub(crate) form: Form,
    /// Whom to ask.
    pub(crate) world: &'a mut dyn World,
}

/// Runs `mortar`.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = Program::of(args.next().as_deref());
    let args: Vec<OsString> = args.collect();
    match flags::parse(&args) {
        Err(message) => tell(&Said {
            err: format!("{message}\n"),
            code: 1,
            ..Said::default()
        }),
        Ok(Line::Tool(globals, tool, rest)) => run_tool(globals, tool, rest),
        Ok(Line::Words(globals, words)) => {
            let mut world = Real::new(&globals);
            tell(&run_words(program, &globals, &mut world, &words))
        }
    }
}

fn tell(said: &Said) -> ExitCode {
    // A closed pipe (| head) is no error of ours.
    let _ = std::io::stdout().write_all(said.out.as_bytes());
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().write_all(said.err.as_bytes());
    ExitCode::from(said.code)
}

fn run_words(program: Program, globals: &Globals, world: &mut dyn World, words: &[String]) -> Said {
    match globals.show {
        Some(Show::Version) => return Said::out(program.version()),
        Some(Show::LogDir) => return Said::out("/var/log/mortar\n"),
        Some(Show::DumpDir) => return Said::out("/var/lib/mortar\n"),
        Some(Show::Help) | None => {}
    }
    let asks_for_help = globals.show == Some(Show::Help);
    let mut context = Context {
        program,
        form: globals.form,
        world,
    };
    let Some((family, rest)) = words.split_first() else {
        let help = help::all(program);
        return if asks_for_help {
            Said::out(help)
        } else {
            Said {
                err: help,
                code: 2,
                ..Said::default()
            }
        };
    };
    let help = ["help".to_owned()];
    let rest = if asks_for_help { &help } else { rest };
    let all: Vec<&str> = FAMILIES.iter().chain(TOOLS).copied().collect();
    let done = words::pick(family, &all, 0).and_then(|family| match family {
        "volume" => volume::run(&mut context, rest),
        "peer" => peer::peer(&mut context, rest),
        "pool" if asks_for_help => peer::peer(&mut context, rest),
        "pool" => peer::pool(&mut context, rest),
        "cluster" => cluster::cluster(&mut context, rest),
        "operation" => cluster::operation(&mut context, rest),
        _ => Ok(Said::out(help::all(program))),
    });
    done.unwrap_or_else(|failed: Failed| failed.said(program, globals.form))
}

fn run_tool(mut globals: Globals, tool: &str, rest: Vec<OsString>) -> ExitCode {
    match globals.show {
        Some(Show::Help) | None => {}
        Some(_) => {
            return tell(&run_words(
                Program::Mortar,
                &globals,
                &mut Real::new(&globals),
                &[],
            ));
        }
    }
    let mut args: Vec<OsString> = vec!["mortar".into(), tool.into()];
    if globals.show == Some(Show::Help) {
        args.push("--help".into());
    }
    args.extend(rest);
    let tools = Tools::parse_from(args);
    globals
        .servers
        .extend(tools.server.iter().flat_map(|text| flags::servers(text)));
    if tools.mode.as_deref() == Some("script") {
        globals.mode = Mode::Script;
    }
    match tools.command {
        Tool::Stats(args) => stats::run(&globals, &args),
        Tool::Mount(args) => crate::mount::run(args),
        Tool::Brick { args } => brick::run(&args),
        Tool::Demo(args) => crate::demo::run(&args),
    }
}

#[cfg(test)]
mod tests;

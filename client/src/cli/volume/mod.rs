//! `mortar volume ...`, with gluster's outputs.

mod create;
mod json;
mod markup;
mod options;
mod text;

use std::fmt::Write as _;

use mortar_protocol::admin::{AdminReply, AdminRequest, BrickStatus, CreateVolume};
use mortar_protocol::view::{SetKind, VolumeInfo, VolumeState};

use super::flags::{Form, Program};
use super::said::{self, Failed, Said};
use super::words::pick;
use super::{Context, help, xml};

pub(crate) use text::{place, size_text};

const CREATE: &str = "volume create <NEW-VOLNAME> [replica <COUNT>] [transport tcp] [--brick-size <SIZE>] \
    <HOST:/PATH> ... [force]";
const DELETE: &str = "volume delete <VOLNAME>";
const GET: &str = "volume get <VOLNAME> <key|all>";
const INFO: &str = "volume info [all|<VOLNAME>]";
const LIST: &str = "volume list";
const RESET: &str = "volume reset <VOLNAME> [option] [force]";
const SET: &str = "volume set <VOLNAME> <KEY> <VALUE> ...";
const START: &str = "volume start <VOLNAME> [force]";
const STATUS: &str = "volume status [all | <VOLNAME>] [detail]";
const STOP: &str = "volume stop <VOLNAME> [force]";
const VERBS: &[&str] = &[
    "create", "delete", "get", "help", "info", "list", "reset", "set", "start", "status", "stop",
];

const STOP_QUESTION: &str =
    "Stopping volume will make its data inaccessible. Do you want to continue?";
const DELETE_QUESTION: &str =
    "Deleting volume will erase all information about the volume. Do you want to continue?";

/// Lines of `help`: usage and what it does.
pub(crate) fn help_lines() -> Vec<(&'static str, &'static str)> {
    vec![
        (CREATE, "create a new volume"),
        (
            DELETE,
            "delete volume specified by <VOLNAME>; its bricks keep their contents",
        ),
        (
            GET,
            "Get the value of the all options or given option for volume <VOLNAME>",
        ),
        ("volume help", "display help for volume commands"),
        (INFO, "list information of all volumes"),
        (LIST, "list all volumes in cluster"),
        (
            RESET,
            "reset all the reconfigured options, or the one named",
        ),
        (SET, "set options for volume <VOLNAME>"),
        ("volume set help", "list the options"),
        (START, "start volume specified by <VOLNAME>"),
        (
            STATUS,
            "display status of the bricks of all or the specified volume",
        ),
        (STOP, "stop volume specified by <VOLNAME>"),
    ]
}

/// What `volume` can be asked.
#[derive(PartialEq, Eq, Debug)]
enum Command {
    Help,
    Create(CreateVolume),
    Delete(String),
    Get {
        volume: String,
        key: String,
    },
    Info(Option<String>),
    List,
    Reset {
        volume: String,
        option: Option<String>,
    },
    Set {
        volume: String,
        options: Vec<(String, String)>,
    },
    SetHelp,
    Start {
        volume: String,
        force: bool,
    },
    Status {
        volume: Option<String>,
        detail: bool,
    },
    Stop {
        volume: String,
        force: bool,
    },
}

fn parse(words: &[String]) -> Result<Command, Failed> {
    let Some((verb, rest)) = words.split_first() else {
        return Ok(Command::Help);
    };
    let verb = pick(verb, VERBS, 1)?;
    let rest_text: Vec<&str> = rest.iter().map(String::as_str).collect();
    let named = |name: &str| (name != "all").then(|| name.to_owned());
    Ok(match (verb, &rest_text[..]) {
        ("help", _) => Command::Help,
        ("create", _) => Command::Create(create::create(rest)?),
        ("delete", [volume]) => Command::Delete((*volume).to_owned()),
        ("delete", _) => return Err(Failed::Usage(DELETE)),
        ("get", [volume, key]) => Command::Get {
            volume: (*volume).to_owned(),
            key: (*key).to_owned(),
        },
        ("get", _) => return Err(Failed::Usage(GET)),
        ("info", []) => Command::Info(None),
        ("info", [volume]) => Command::Info(named(volume)),
        ("info", _) => return Err(Failed::Usage(INFO)),
        ("list", []) => Command::List,
        ("list", _) => return Err(Failed::Usage(LIST)),
        ("reset", [volume] | [volume, "force"]) => Command::Reset {
            volume: (*volume).to_owned(),
            option: None,
        },
        ("reset", [volume, option] | [volume, option, "force"]) => Command::Reset {
            volume: (*volume).to_owned(),
            option: named(option),
        },
        ("reset", _) => return Err(Failed::Usage(RESET)),
        ("set", ["help"]) => Command::SetHelp,
        ("set", [volume, pairs @ ..]) if !pairs.is_empty() && pairs.len() % 2 == 0 => {
            Command::Set {
                volume: (*volume).to_owned(),
                options: pairs
                    .chunks_exact(2)
                    .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
                    .collect(),
            }
        }
        ("set", _) => return Err(Failed::Usage(SET)),
        ("start" | "stop", [volume, force @ ..]) if matches!(force, [] | ["force"]) => {
            let (volume, force) = ((*volume).to_owned(), !force.is_empty());
            match verb {
                "start" => Command::Start { volume, force },
                _ => Command::Stop { volume, force },
            }
        }
        ("start", _) => return Err(Failed::Usage(START)),
        ("stop", _) => return Err(Failed::Usage(STOP)),
        (_, []) => Command::Status {
            volume: None,
            detail: false,
        },
        (_, ["detail"]) => Command::Status {
            volume: None,
            detail: true,
        },
        (_, [volume]) => Command::Status {
            volume: named(volume),
            detail: false,
        },
        (_, [volume, "detail"]) => Command::Status {
            volume: named(volume),
            detail: true,
        },
        _ => return Err(Failed::Usage(STATUS)),
    })
}

/// Runs `mortar volume WORDS`.
///
/// # Errors
/// Why it was not done.
pub(crate) fn run(context: &mut Context<'_>, words: &[String]) -> Result<Said, Failed> {
    match parse(words)? {
        Command::Help => Ok(Said::out(help::family(
            context.program,
            "volume",
            &help_lines(),
        ))),
        Command::Create(request) => make(context, request),
        Command::Delete(volume) => {
            context.world.confirm(DELETE_QUESTION)?;
            let request = AdminRequest::Delete {
                volume: volume.clone(),
            };
            change(context, "delete", &volume, request)
        }
        Command::Get { volume, key } => options::get(context, &volume, &key),
        Command::Info(volume) => info(context, volume),
        Command::List => list(context),
        Command::Reset { volume, option } => options::reset(context, volume, option),
        Command::Set { volume, options } => options::set(context, volume, options),
        Command::SetHelp => Ok(Said::out(options::help())),
        Command::Start { volume, force } => {
            let request = AdminRequest::Start {
                volume: volume.clone(),
                force,
            };
            change(context, "start", &volume, request)
        }
        Command::Status { volume, detail } => status(context, volume, detail),
        Command::Stop { volume, force } => {
            let question = stop_question(context, &volume)?;
            context.world.confirm(&question)?;
            let request = AdminRequest::Stop {
                volume: volume.clone(),
                force,
            };
            change(context, "stop", &volume, request)
        }
    }
}

/// Asks; a refusal is the failure of a command with this text in front.
fn ask(
    context: &mut Context<'_>,
    request: AdminRequest,
    prefix: &str,
) -> Result<AdminReply, Failed> {
    match context.world.ask(request)? {
        AdminReply::Refused { message } => Err(Failed::refused(prefix, message)),
        reply => Ok(reply),
    }
}

/// The volume of this name, or all.
fn volumes(
    context: &mut Context<'_>,
    volume: Option<String>,
    prefix: &str,
) -> Result<Vec<VolumeInfo>, Failed> {
    match ask(context, AdminRequest::Info { volume }, prefix)? {
        AdminReply::Volumes(volumes) => Ok(volumes),
        _ => Err(Failed::confused()),
    }
}

/// The identity of a volume, for outputs that show it.
fn identity(context: &mut Context<'_>, volume: &str) -> Result<Option<String>, Failed> {
    if context.form == Form::Text {
        return Ok(None);
    }
    // Of a volume that does not exist the command itself tells.
    match volumes(context, Some(volume.to_owned()), "") {
        Ok(found) => Ok(found.first().map(|volume| volume.id.to_string())),
        Err(Failed::Refused { .. }) => Ok(None),
        Err(failed) => Err(failed),
    }
}

fn notes(reply: AdminReply) -> Result<Vec<String>, Failed> {
    match reply {
        AdminReply::Done => Ok(Vec::new()),
        AdminReply::Notes(lines) => Ok(lines),
        _ => Err(Failed::confused()),
    }
}

fn make(context: &mut Context<'_>, request: CreateVolume) -> Result<Said, Failed> {
    let two = request.kind == (SetKind::Replicate { copies: 2 });
    if two && !request.force {
        context.world.confirm(create::REPLICA_2)?;
    }
    let name = request.name.clone();
    let prefix = format!("volume create: {name}: failed: ");
    let notes = notes(ask(context, AdminRequest::Create(request), &prefix)?)?;
    let id = identity(context, &name)?;
    let text = format!("volume create: {name}: success: please start the volume to access data\n");
    Ok(changed(context.form, "create", &name, id, &notes, text))
}

/// A command that changes a whole volume.
fn change(
    context: &mut Context<'_>,
    verb: &'static str,
    volume: &str,
    request: AdminRequest,
) -> Result<Said, Failed> {
    let id = identity(context, volume)?;
    let prefix = format!("volume {verb}: {volume}: failed: ");
    let notes = notes(ask(context, request, &prefix)?)?;
    let text = format!("volume {verb}: {volume}: success\n");
    Ok(changed(context.form, verb, volume, id, &notes, text))
}

fn changed(
    form: Form,
    verb: &str,
    volume: &str,
    id: Option<String>,
    notes: &[String],
    success: String,
) -> Said {
    Said::out(match form {
        Form::Text => lines(notes) + &success,
        Form::Xml => markup::changed(verb, volume, id.as_deref()),
        Form::Json => said::json(&json::changed(volume, id.as_deref(), notes)),
    })
}

fn lines(lines: &[String]) -> String {
    lines
        .iter()
        .fold(String::new(), |text, line| text + line + "\n")
}

/// What is asked before a volume is stopped.
fn stop_question(context: &mut Context<'_>, volume: &str) -> Result<String, Failed> {
    if context.program == Program::Gluster {
        return Ok(STOP_QUESTION.to_owned());
    }
    let status = AdminRequest::Status {
        volume: volume.to_owned(),
    };
    // What is wrong is told by the command itself.
    Ok(match context.world.ask(status)? {
        AdminReply::Status { clients, .. } if clients > 0 => {
            format!("{volume} is mounted by {clients} clients. {STOP_QUESTION}")
        }
        _ => STOP_QUESTION.to_owned(),
    })
}

fn list(context: &mut Context<'_>) -> Result<Said, Failed> {
    let found = volumes(context, None, "volume list: failed: ")?;
    let names: Vec<&str> = found.iter().map(|volume| volume.name.as_str()).collect();
    Ok(match context.form {
        // As gluster: on standard error, with exit code 0.
        Form::Text if names.is_empty() => Said {
            err: "No volumes present in cluster\n".to_owned(),
            ..Said::default()
        },
        Form::Text => Said::out(names.join("\n") + "\n"),
        Form::Xml => Said::out(markup::list(&names)),
        Form::Json => Said::out(said::json(&serde_json::json!({ "volumes": names }))),
    })
}

fn info(context: &mut Context<'_>, volume: Option<String>) -> Result<Said, Failed> {
    let found = volumes(context, volume, "")?;
    Ok(match context.form {
        Form::Text if found.is_empty() => Said {
            err: "No volumes present\n".to_owned(),
            ..Said::default()
        },
        Form::Text => Said::out(found.iter().map(text::info).collect::<String>()),
        Form::Xml => Said::out(markup::info(&found)),
        Form::Json => Said::out(said::json(&json::info(&found))),
    })
}

/// A volume's bricks, and how many clients it has.
pub(super) struct Status {
    volume: VolumeInfo,
    bricks: Vec<BrickStatus>,
    clients: u32,
}

fn status_of(context: &mut Context<'_>, volume: String) -> Result<Status, Failed> {
    match ask(context, AdminRequest::Status { volume }, "")? {
        AdminReply::Status {
            volume,
            bricks,
            clients,
        } => Ok(Status {
            volume,
            bricks,
            clients,
        }),
        _ => Err(Failed::confused()),
    }
}

fn status(context: &mut Context<'_>, volume: Option<String>, detail: bool) -> Result<Said, Failed> {
    let mut err = String::new();
    let mut found = Vec::new();
    match volume {
        Some(volume) => found.push(status_of(context, volume)?),
        None => {
            let all = volumes(context, None, "")?;
            if all.is_empty() {
                err.push_str("No volumes present\n");
            }
            for volume in all {
                if volume.state != VolumeState::Started {
                    let _ = writeln!(err, "Volume {} is not started", volume.name);
                    continue;
                }
                match status_of(context, volume.name) {
                    Ok(status) => found.push(status),
                    // It may have been stopped a moment ago.
                    Err(Failed::Refused { message, .. }) => {
                        let _ = writeln!(err, "{message}");
                    }
                    Err(failed) => return Err(failed),
                }
            }
        }
    }
    let strict = context.program == Program::Gluster;
    let out = match context.form {
        Form::Text if detail => found.iter().map(text::detail).collect(),
        Form::Text => {
            let mut out = String::new();
            for status in &found {
                out.push_str(&text::status(status));
                // Lines that gluster does not have would confuse what reads its output.
                let more = text::more(status);
                if strict {
                    err.push_str(&text::reasons(status));
                } else {
                    out.push_str(&more);
                }
            }
            out
        }
        Form::Xml => markup::status(&found, detail),
        Form::Json => said::json(&json::status(&found)),
    };
    if context.form != Form::Text {
        err.clear();
    }
    Ok(Said { out, err, code: 0 })
}

#[cfg(test)]
mod tests;

//! `mortar cluster status` and `mortar operation list`: how the cluster is doing, for a person who is awake because
//! something is wrong. What is wrong stands first, a line for each problem.

mod json;
mod problems;
mod text;

use mortar_protocol::admin::{AdminReply, AdminRequest, OperationInfo};
use mortar_protocol::env_real::wall_now;

use super::flags::Form;
use super::said::{self, Failed, Said};
use super::words::pick;
use super::{Context, help};

const STATUS: &str = "cluster status [--json]";
const LIST: &str = "operation list [--json]";

/// Lines of `help`: usage and what it does.
pub(crate) fn help_lines() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            STATUS,
            "what is wrong, nodes, volumes, operations in progress, space",
        ),
        (LIST, "operations of several steps that are in progress"),
    ]
}

/// Runs `mortar cluster WORDS`.
///
/// # Errors
/// Why it was not done.
pub(crate) fn cluster(context: &mut Context<'_>, words: &[String]) -> Result<Said, Failed> {
    match verb(words, &["status", "help"], STATUS)? {
        "status" => {}
        _ => return Ok(helped(context, "cluster")),
    }
    no_xml(context.form)?;
    let status = match context.world.ask(AdminRequest::Cluster)? {
        AdminReply::Cluster(status) => status,
        AdminReply::Refused { message } => {
            return Err(Failed::refused("cluster status: failed: ", message));
        }
        _ => return Err(Failed::confused()),
    };
    let now = wall_now().secs;
    Ok(Said::out(match context.form {
        Form::Json => said::json(&json::cluster(&status, now)),
        _ => text::cluster(&status, now),
    }))
}

/// Runs `mortar operation WORDS`.
///
/// # Errors
/// Why it was not done.
pub(crate) fn operation(context: &mut Context<'_>, words: &[String]) -> Result<Said, Failed> {
    match verb(words, &["list", "help"], LIST)? {
        "list" => {}
        _ => return Ok(helped(context, "operation")),
    }
    no_xml(context.form)?;
    let operations: Vec<OperationInfo> = match context.world.ask(AdminRequest::Operations)? {
        AdminReply::Operations(operations) => operations,
        AdminReply::Refused { message } => {
            return Err(Failed::refused("operation list: failed: ", message));
        }
        _ => return Err(Failed::confused()),
    };
    let now = wall_now().secs;
    Ok(Said::out(match context.form {
        Form::Json => said::json(&json::operations(&operations, now)),
        _ if operations.is_empty() => "No operations in progress\n".to_owned(),
        _ => text::operations(&operations, now),
    }))
}

fn verb(
    words: &[String],
    verbs: &[&'static str],
    usage: &'static str,
) -> Result<&'static str, Failed> {
    match words {
        [] => Ok("help"),
        [verb] => pick(verb, verbs, 1),
        [verb, ..] => match pick(verb, verbs, 1)? {
            "help" => Ok("help"),
            _ => Err(Failed::Usage(usage)),
        },
    }
}

fn helped(context: &Context<'_>, family: &str) -> Said {
    let lines = help_lines();
    let of_family = |line: &&(&str, &str)| line.0.starts_with(family);
    let lines: Vec<_> = lines.iter().filter(of_family).copied().collect();
    Said::out(help::family(context.program, family, &lines))
}

/// gluster has no such command, so there is no XML to be compatible with.
fn no_xml(form: Form) -> Result<(), Failed> {
    if form == Form::Xml {
        return Err(Failed::Wrong(
            "there is no XML form of this command; use --json".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

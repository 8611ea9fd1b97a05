//! `mortar volume ...`, with gluster's outputs.

use std::fmt::Write as _;
use std::io::{BufRead, Write as _};
use std::process::ExitCode;

use mortar_protocol::admin::{AdminReply, AdminRequest, BrickStatus};
use mortar_protocol::options::{self, Effect, OPTIONS};
use mortar_protocol::view::{SetKind, VolumeInfo, VolumeState};

use super::admin::Admin;
use super::words;

const HELP: &str = "
mortar volume commands
======================

volume create <NEW-VOLNAME> [replica <COUNT>] [--brick-size <SIZE>] <HOST:/PATH> ... [force] - create a new volume
volume delete <VOLNAME> - delete volume specified by <VOLNAME>; its bricks keep their contents
volume get <VOLNAME> <key|all> - Get the value of the all options or given option for volume <VOLNAME>
volume help - display this help
volume info [<VOLNAME>] - list information of all volumes
volume list - list all volumes in cluster
volume reset <VOLNAME> [option] - reset all the reconfigured options, or the one named
volume set <VOLNAME> <KEY> <VALUE> ... - set options for volume <VOLNAME>
volume set help - list the options
volume start <VOLNAME> [force] - start volume specified by <VOLNAME>
volume status [<VOLNAME>|all] [detail] - display status of the bricks of all or the specified volume
volume stop <VOLNAME> [force] - stop volume specified by <VOLNAME>
";

/// A command that ends with exit code 1: the line for standard error.
type Failed = String;

/// Runs `mortar volume WORDS`.
pub(crate) fn run(server: &str, script: bool, words: &[String]) -> ExitCode {
    match command(server, script, words) {
        Ok(text) => {
            // A closed pipe (| head) is no error of ours.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{}", message.trim_end_matches('\n'));
            ExitCode::FAILURE
        }
    }
}

fn command(server: &str, script: bool, words: &[String]) -> Result<String, Failed> {
    let verb = words.first().map_or("help", String::as_str);
    let rest = words.get(1..).unwrap_or_default();
    let usage = |line: &str| format!("\nUsage:\nvolume {line}");
    let name = || rest.first().cloned();
    match verb {
        "help" | "--help" | "-h" => Ok(HELP.to_owned()),
        "create" => create(server, rest),
        "list" => list(server),
        "info" => info(server, name().filter(|name| name != "all")),
        "status" => status(server, rest),
        "start" => {
            let volume = name().ok_or_else(|| usage("start <VOLNAME> [force]"))?;
            let force = rest.get(1).is_some_and(|word| word == "force");
            simple(
                server,
                "start",
                &volume,
                AdminRequest::Start {
                    volume: volume.clone(),
                    force,
                },
            )
        }
        "stop" => {
            let volume = name().ok_or_else(|| usage("stop <VOLNAME> [force]"))?;
            let force = rest.get(1).is_some_and(|word| word == "force");
            if !script {
                confirm(script, &stop_question(server, &volume))?;
            }
            simple(
                server,
                "stop",
                &volume,
                AdminRequest::Stop {
                    volume: volume.clone(),
                    force,
                },
            )
        }
        "delete" => {
            let volume = name().ok_or_else(|| usage("delete <VOLNAME>"))?;
            confirm(
                script,
                "Deleting volume will erase all information about the volume. Do you want to continue? (y/n) ",
            )?;
            simple(
                server,
                "delete",
                &volume,
                AdminRequest::Delete {
                    volume: volume.clone(),
                },
            )
        }
        "set" => set(server, rest),
        "get" => get(server, rest),
        "reset" => {
            let volume = name().ok_or_else(|| usage("reset <VOLNAME> [option]"))?;
            let option = rest.get(1).cloned();
            match ask(server, AdminRequest::Reset { volume, option })? {
                Ok(_) => Ok("volume reset: success: reset volume successful\n".to_owned()),
                Err(message) => Err(format!("volume reset: failed: {message}")),
            }
        }
        other => Err(format!(
            "unrecognized word: {other} (position 1)\nSee `mortar volume help`."
        )),
    }
}

/// Asks; a refusal of the control plane is the inner error.
fn ask(server: &str, request: AdminRequest) -> Result<Result<AdminReply, Failed>, Failed> {
    match Admin::connect(server)?.ask(request)? {
        AdminReply::Refused { message } => Ok(Err(message)),
        reply => Ok(Ok(reply)),
    }
}

fn simple(server: &str, verb: &str, volume: &str, request: AdminRequest) -> Result<String, Failed> {
    match ask(server, request)? {
        Ok(AdminReply::Notes(lines)) => {
            let mut text = lines
                .iter()
                .fold(String::new(), |text, line| text + line + "\n");
            let _ = writeln!(text, "volume {verb}: {volume}: success");
            Ok(text)
        }
        Ok(_) => Ok(format!("volume {verb}: {volume}: success\n")),
        Err(message) => Err(format!("volume {verb}: {volume}: failed: {message}")),
    }
}

/// What is asked before a volume is stopped.
fn stop_question(server: &str, volume: &str) -> String {
    let status = AdminRequest::Status {
        volume: volume.to_owned(),
    };
    // What is wrong is told by the command itself.
    let mounted = match ask(server, status) {
        Ok(Ok(AdminReply::Status { clients, .. })) if clients > 0 => {
            format!("{volume} is mounted by {clients} clients. ")
        }
        _ => String::new(),
    };
    format!(
        "{mounted}Stopping volume will make its data inaccessible. Do you want to continue? (y/n) "
    )
}

fn confirm(script: bool, question: &str) -> Result<(), Failed> {
    if script {
        return Ok(());
    }
    print!("{question}");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err("not done (answer y, or use --mode=script)".to_owned())
    }
}

fn create(server: &str, rest: &[String]) -> Result<String, Failed> {
    let request = words::create(rest)?;
    let name = request.name.clone();
    match ask(server, AdminRequest::Create(request))? {
        Ok(_) => Ok(format!(
            "volume create: {name}: success: please start the volume to access data\n"
        )),
        Err(message) => Err(format!("volume create: {name}: failed: {message}")),
    }
}

fn volumes(server: &str, volume: Option<String>) -> Result<Vec<VolumeInfo>, Failed> {
    match ask(server, AdminRequest::Info { volume })? {
        Ok(AdminReply::Volumes(volumes)) => Ok(volumes),
        Ok(_) => Err("the daemon gave an answer to another question".to_owned()),
        Err(message) => Err(message),
    }
}

fn list(server: &str) -> Result<String, Failed> {
    let found = volumes(server, None)?;
    if found.is_empty() {
        // As gluster: on standard error, with exit code 0.
        eprintln!("No volumes present in cluster");
    }
    Ok(found
        .iter()
        .fold(String::new(), |text, volume| text + &volume.name + "\n"))
}

fn info(server: &str, volume: Option<String>) -> Result<String, Failed> {
    let found = volumes(server, volume)?;
    if found.is_empty() {
        eprintln!("No volumes present");
    }
    Ok(found.iter().map(info_text).collect())
}

fn type_name(volume: &VolumeInfo) -> &'static str {
    match (volume.kind, volume.sets.len()) {
        (SetKind::Plain, _) => "Distribute",
        (SetKind::Replicate { .. }, 1) => "Replicate",
        (SetKind::Replicate { .. }, _) => "Distributed-Replicate",
        (SetKind::Disperse { .. }, 1) => "Disperse",
        (SetKind::Disperse { .. }, _) => "Distributed-Disperse",
    }
}

fn info_text(volume: &VolumeInfo) -> String {
    let state = match volume.state {
        VolumeState::Created => "Created",
        VolumeState::Started => "Started",
        VolumeState::Stopped => "Stopped",
    };
    let total: usize = volume.sets.iter().map(Vec::len).sum();
    let count = match volume.kind {
        SetKind::Plain => total.to_string(),
        SetKind::Replicate { copies } => format!("{} x {copies} = {total}", volume.sets.len()),
        SetKind::Disperse { data, redundancy } => {
            format!("{} x ({data} + {redundancy}) = {total}", volume.sets.len())
        }
    };
    let mut text = format!(
        " \nVolume Name: {}\nType: {}\nVolume ID: {}\nStatus: {state}\nSnapshot Count: 0\nNumber of Bricks: {count}\n\
         Transport-type: quic\nBricks:\n",
        volume.name,
        type_name(volume),
        volume.id
    );
    for (at, brick) in volume.sets.iter().flatten().enumerate() {
        let _ = writeln!(text, "Brick{}: {}:{}", at + 1, brick.host, brick.path);
    }
    if !volume.options.is_empty() {
        text.push_str("Options Reconfigured:\n");
        for (name, value) in &volume.options {
            let _ = writeln!(text, "{name}: {value}");
        }
    }
    text
}

const RULE: &str =
    "------------------------------------------------------------------------------\n";

fn status(server: &str, rest: &[String]) -> Result<String, Failed> {
    let name = rest
        .first()
        .filter(|word| *word != "all" && *word != "detail")
        .cloned();
    let detail = rest.iter().any(|word| word == "detail");
    let names = match name {
        Some(name) => vec![name],
        None => {
            let found = volumes(server, None)?;
            if found.is_empty() {
                eprintln!("No volumes present");
            }
            let (started, other): (Vec<_>, Vec<_>) = found
                .into_iter()
                .partition(|volume| volume.state == VolumeState::Started);
            for volume in other {
                eprintln!("Volume {} is not started", volume.name);
            }
            started.into_iter().map(|volume| volume.name).collect()
        }
    };
    let mut text = String::new();
    for volume in names {
        match ask(server, AdminRequest::Status { volume })? {
            Ok(AdminReply::Status {
                volume,
                bricks,
                clients,
            }) => {
                text.push_str(&if detail {
                    detail_text(&volume, &bricks)
                } else {
                    status_text(&volume, &bricks, clients)
                });
            }
            Ok(_) => return Err("the daemon gave an answer to another question".to_owned()),
            Err(message) => return Err(message),
        }
    }
    Ok(text)
}

fn status_text(volume: &VolumeInfo, bricks: &[BrickStatus], clients: u32) -> String {
    let mut text = format!(
        "Status of volume: {}\nGluster process                             TCP Port  RDMA Port  Online  Pid\n{RULE}",
        volume.name
    );
    let mut notes = String::new();
    for brick in bricks {
        let name = format!("Brick {}:{}", brick.spec.host, brick.spec.path);
        let (port, rdma, pid) = if brick.online {
            (brick.port.to_string(), "0", brick.pid.to_string())
        } else {
            ("N/A".to_owned(), "N/A", "N/A".to_owned())
        };
        let online = if brick.online { "Y" } else { "N" };
        // gluster breaks a long name into lines of 43 characters; the columns follow the last one.
        let mut rest = name.as_str();
        while rest.len() > 43 && rest.is_char_boundary(43) {
            let _ = writeln!(text, "{}", &rest[..43]);
            rest = &rest[43..];
        }
        let _ = writeln!(text, "{rest:<44}{port:<10}{rdma:<11}{online:<8}{pid:<5}");
        if !brick.reason.is_empty() {
            let _ = writeln!(notes, "{name}: {}", brick.reason);
        }
    }
    let _ = writeln!(
        text,
        " \nTask Status of Volume {}\n{RULE}There are no active volume tasks\n ",
        volume.name
    );
    if !notes.is_empty() {
        text.push_str(&notes);
    }
    if clients > 0 {
        let _ = writeln!(text, "Clients with a session: {clients}");
    }
    text
}

fn size_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["Bytes", "KB", "MB", "GB"] {
        if value < 1024.0 {
            return format!("{value:.1}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1}TB")
}

fn detail_text(volume: &VolumeInfo, bricks: &[BrickStatus]) -> String {
    let mut text = format!("Status of volume: {}\n", volume.name);
    for brick in bricks {
        text.push_str(RULE);
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key:<21}: {value:<20}");
        };
        line(
            "Brick",
            format!("Brick {}:{}", brick.spec.host, brick.spec.path),
        );
        line(
            "TCP Port",
            if brick.online {
                brick.port.to_string()
            } else {
                "N/A".into()
            },
        );
        line("RDMA Port", "0".into());
        line("Online", if brick.online { "Y" } else { "N" }.into());
        line(
            "Pid",
            if brick.online {
                brick.pid.to_string()
            } else {
                "N/A".into()
            },
        );
        line("In sync", if brick.in_sync { "Y" } else { "N" }.into());
        line("File System", "mortar".into());
        if let Some(space) = &brick.space {
            line("Disk Space Free", size_text(space.free));
            line("Total Disk Space", size_text(space.total));
            line("Inode Count", space.inodes.to_string());
        }
        if !brick.reason.is_empty() {
            line("Reason", brick.reason.clone());
        }
    }
    text
}

fn set(server: &str, rest: &[String]) -> Result<String, Failed> {
    if rest.first().is_some_and(|word| word == "help") {
        return Ok(options_help());
    }
    let (Some(volume), pairs) = (rest.first().cloned(), rest.get(1..).unwrap_or_default()) else {
        return Err("\nUsage:\nvolume set <VOLNAME> <KEY> <VALUE>".to_owned());
    };
    if pairs.is_empty() || pairs.len() % 2 != 0 {
        return Err("\nUsage:\nvolume set <VOLNAME> <KEY> <VALUE>".to_owned());
    }
    let options = pairs
        .chunks(2)
        .map(|pair| (pair[0].clone(), pair[1].clone()))
        .collect();
    match ask(server, AdminRequest::Set { volume, options })? {
        Ok(AdminReply::Notes(lines)) => Ok(lines
            .iter()
            .fold(String::new(), |text, line| text + line + "\n")
            + "volume set: success\n"),
        Ok(_) => Ok("volume set: success\n".to_owned()),
        Err(message) => Err(format!("volume set: failed: {message}")),
    }
}

fn options_help() -> String {
    let mut text = String::new();
    for option in OPTIONS {
        let _ = writeln!(
            text,
            "Option: {}\nDefault Value: {}\nValues: {}\nDescription: {}\n",
            option.name,
            option.default,
            option.check,
            match option.effect {
                Effect::Refused(why) => format!("refused: {why}"),
                _ => option.help.to_owned(),
            }
        );
    }
    text
}

fn get(server: &str, rest: &[String]) -> Result<String, Failed> {
    let [volume, key] = rest else {
        return Err("\nUsage:\nvolume get <VOLNAME|all> <key|all>".to_owned());
    };
    let found = volumes(server, Some(volume.clone()))
        .map_err(|message| format!("volume get option: failed: {message}"))?;
    let set = found.first().map(|volume| &volume.options);
    let value = |name: &str, default: &str| match set.and_then(|options| options.get(name)) {
        Some(value) => value.clone(),
        None => format!("{default} (DEFAULT)"),
    };
    let mut text = format!(
        "{:<40} {:<40}\n{:<40} {:<40}\n",
        "Option", "Value", "------", "-----"
    );
    let wanted: Vec<_> = if key == "all" {
        OPTIONS.iter().collect()
    } else {
        options::find(key).into_iter().collect()
    };
    if wanted.is_empty() {
        let hint = options::nearest(key)
            .map(|name| format!("\nDid you mean {name}?"))
            .unwrap_or_default();
        return Err(format!(
            "volume get option: failed: option : {key} does not exist{hint}"
        ));
    }
    for option in wanted {
        let _ = writeln!(
            text,
            "{:<40} {:<40}",
            option.name,
            value(option.name, option.default)
        );
    }
    Ok(text)
}

//! `volume set`, `get` and `reset`.

use std::fmt::Write as _;

use mortar_protocol::admin::AdminRequest;
use mortar_protocol::options::{self, Effect, OPTIONS};
use serde_json::json;

use super::{Context, Failed, Form, Said, ask, lines, notes, said, volumes, xml};

/// `volume set help`.
pub(super) fn help() -> String {
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

/// `volume set`.
pub(super) fn set(
    context: &mut Context<'_>,
    volume: String,
    options: Vec<(String, String)>,
) -> Result<Said, Failed> {
    let request = AdminRequest::Set {
        volume: volume.clone(),
        options,
    };
    let notes = notes(ask(context, request, "volume set: failed: ")?)?;
    Ok(Said::out(match context.form {
        Form::Text => lines(&notes) + "volume set: success\n",
        Form::Xml => xml::done(|xml| xml.within("volSet", |_| {})),
        Form::Json => said::json(&json!({ "volume": volume, "done": true, "notes": notes })),
    }))
}

/// `volume reset`.
pub(super) fn reset(
    context: &mut Context<'_>,
    volume: String,
    option: Option<String>,
) -> Result<Said, Failed> {
    let request = AdminRequest::Reset {
        volume: volume.clone(),
        option,
    };
    let notes = notes(ask(context, request, "volume reset: failed: ")?)?;
    Ok(Said::out(match context.form {
        Form::Text => lines(&notes) + "volume reset: success: reset volume successful\n",
        Form::Xml => xml::done(|xml| {
            xml.element("cliOp", "volReset");
            xml.element("output", "reset volume successful");
        }),
        Form::Json => said::json(&json!({ "volume": volume, "done": true, "notes": notes })),
    }))
}

/// An option's value, and whether it is the default.
type Shown = (String, String, bool);

/// `volume get`.
pub(super) fn get(context: &mut Context<'_>, volume: &str, key: &str) -> Result<Said, Failed> {
    const PREFIX: &str = "volume get option: failed: ";
    if volume == "all" {
        let why = "there are no options of the whole cluster; name a volume";
        return Err(Failed::refused(PREFIX, why));
    }
    let wanted: Vec<_> = if key == "all" {
        OPTIONS.iter().collect()
    } else {
        options::find(key).into_iter().collect()
    };
    let found = volumes(context, Some(volume.to_owned()), PREFIX)?;
    let set = found.first().map(|volume| &volume.options);
    let note = set.filter(|_| options::is_note(key));
    let note = note.and_then(|set| set.get(key));
    if wanted.is_empty() && note.is_none() {
        let hint = options::nearest(key)
            .map(|name| format!("\nDid you mean {name}?"))
            .unwrap_or_default();
        let why = format!("option : {key} does not exist{hint}");
        return Err(Failed::refused(PREFIX, why));
    }
    let mut shown: Vec<Shown> = wanted
        .iter()
        .map(|option| {
            let value = set.and_then(|options| options.get(option.name));
            let shown = value.map_or(option.default, String::as_str);
            (option.name.to_owned(), shown.to_owned(), value.is_none())
        })
        .collect();
    shown.extend(note.map(|value| (key.to_owned(), value.clone(), false)));
    Ok(Said::out(match context.form {
        Form::Text => table(&shown),
        Form::Xml => markup(&shown),
        Form::Json => {
            let options = shown.iter().map(|(name, value, default)| {
                json!({ "name": name, "value": value, "default": default })
            });
            said::json(&json!({ "volume": volume, "options": options.collect::<Vec<_>>() }))
        }
    }))
}

fn value((_, value, default): &Shown) -> String {
    let mark = if *default { " (DEFAULT)" } else { "" };
    format!("{value}{mark}")
}

fn table(shown: &[Shown]) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<40} {value:<39}");
    };
    row("Option", "Value");
    row("------", "-----");
    for option in shown {
        row(&option.0, &value(option));
    }
    text
}

fn markup(shown: &[Shown]) -> String {
    xml::done(|xml| {
        xml.within("volGetopts", |xml| {
            xml.element("count", shown.len());
            for option in shown {
                xml.within("Opt", |xml| {
                    xml.element("Option", &option.0);
                    xml.element("Value", value(option));
                });
            }
        });
    })
}

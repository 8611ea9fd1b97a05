//! What a command says in the end: text for both outputs and an exit code, in the form that was asked for.

use super::flags::{Form, Program};
use super::xml;

/// The number gluster gives to errors that have none of their own.
pub(crate) const ERRNO_OTHER: i32 = 30_800;
/// "Transport endpoint is not connected".
pub(crate) const ERRNO_NOT_CONNECTED: i32 = 107;

/// Output of a process, and its exit code.
#[derive(PartialEq, Eq, Default, Debug)]
pub(crate) struct Said {
    /// For standard output.
    pub(crate) out: String,
    /// For standard error.
    pub(crate) err: String,
    /// Exit code.
    pub(crate) code: u8,
}

impl Said {
    /// Text for standard output.
    pub(crate) fn out(text: impl Into<String>) -> Self {
        Self {
            out: text.into(),
            ..Self::default()
        }
    }
}

/// Why a command was not done.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Failed {
    /// The control plane refused it.
    Refused {
        /// What stands before the message in text, as `volume start: vol: failed: `.
        prefix: String,
        /// The message.
        message: String,
        /// Its number in XML.
        errno: i32,
        /// Exit code.
        code: u8,
    },
    /// It makes no sense, for the reason given.
    Wrong(String),
    /// It is used like this.
    Usage(&'static str),
    /// A word that there is not.
    Word(String),
    /// No daemon has answered.
    Unanswered(String),
    /// The person said no.
    Declined,
}

impl Failed {
    /// A refusal with the usual number and exit code.
    pub(crate) fn refused(prefix: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Refused {
            prefix: prefix.into(),
            message: message.into(),
            errno: ERRNO_OTHER,
            code: 1,
        }
    }

    /// The answer was not one to this question.
    pub(crate) fn confused() -> Self {
        Self::Unanswered("the daemon gave an answer to another question".to_owned())
    }

    /// How it is told.
    pub(crate) fn said(self, program: Program, form: Form) -> Said {
        let gluster = program == Program::Gluster;
        let (line, message, errno, code) = match self {
            Self::Refused {
                prefix,
                message,
                errno,
                code,
            } => (format!("{prefix}{message}"), message, errno, code),
            Self::Wrong(message) => (message.clone(), message, ERRNO_OTHER, 1),
            Self::Unanswered(why) => {
                let message = if gluster {
                    format!(
                        "Connection failed. Please check if gluster daemon is operational. ({why})"
                    )
                } else {
                    why
                };
                (message.clone(), message, ERRNO_NOT_CONNECTED, 1)
            }
            Self::Usage(usage) => {
                return Said {
                    err: format!("\nUsage:\n{usage}\n\n"),
                    code: 1,
                    ..Said::default()
                };
            }
            Self::Word(message) => return unknown_word(program, &message),
            // As gluster: whoever says no has got what they wanted.
            Self::Declined => {
                return Said {
                    err: if gluster { "" } else { "not done\n" }.to_owned(),
                    code: u8::from(!gluster),
                    ..Said::default()
                };
            }
        };
        let line = line.trim_end_matches('\n').to_owned() + "\n";
        match form {
            Form::Text => Said {
                out: String::new(),
                err: line,
                code,
            },
            Form::Xml => Said {
                out: xml::cli_output(-1, errno, message.trim_end_matches('\n'), |_| {}),
                err: String::new(),
                code,
            },
            Form::Json => Said {
                out: json(&serde_json::json!({ "error": message.trim_end_matches('\n') })),
                err: line,
                code,
            },
        }
    }
}

fn unknown_word(program: Program, message: &str) -> Said {
    match program {
        // Recorded: on standard output.
        Program::Gluster => Said {
            out: format!("{message}\n{}", program.usage()),
            err: String::new(),
            code: 1,
        },
        Program::Mortar => Said {
            out: String::new(),
            err: format!("{message}\nSee `mortar help`.\n"),
            code: 1,
        },
    }
}

/// A JSON document with its newline.
pub(crate) fn json(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_in_three_forms() {
        let refused = || Failed::refused("volume start: v: failed: ", "Volume v <does> not exist");
        let text = refused().said(Program::Mortar, Form::Text);
        assert_eq!(
            text.err,
            "volume start: v: failed: Volume v <does> not exist\n"
        );
        assert_eq!((text.out.as_str(), text.code), ("", 1));
        let xml = refused().said(Program::Mortar, Form::Xml);
        assert_eq!(
            xml.out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n<cliOutput>\n  <opRet>-1</opRet>\n  \
             <opErrno>30800</opErrno>\n  <opErrstr>Volume v &lt;does&gt; not exist</opErrstr>\n</cliOutput>\n"
        );
        assert_eq!((xml.err.as_str(), xml.code), ("", 1));
        let json = refused().said(Program::Mortar, Form::Json);
        let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(value["error"], "Volume v <does> not exist");
        assert_eq!((json.err, json.code), (text.err, 1));
    }

    #[test]
    fn an_unknown_word_is_told_as_recorded() {
        let word = || Failed::Word("unrecognized word: foo (position 1)".to_owned());
        let said = word().said(Program::Gluster, Form::Text);
        assert_eq!(
            said.out,
            "unrecognized word: foo (position 1)\n\n Usage: gluster [options] <help> <peer> <pool> <volume>\n \
             Options:\n --help  Shows the help information\n --version  Shows the version\n --print-logdir  Shows the log \
             directory\n --print-statedumpdir Shows the state dump directory\n\n"
        );
        assert_eq!((said.err.as_str(), said.code), ("", 1));
        let said = word().said(Program::Mortar, Form::Text);
        assert!(
            said.err
                .starts_with("unrecognized word: foo (position 1)\n")
        );
        assert_eq!((said.out.as_str(), said.code), ("", 1));
    }

    #[test]
    fn who_says_no_is_obeyed() {
        let gluster = Failed::Declined.said(Program::Gluster, Form::Text);
        assert_eq!(gluster, Said::default());
        assert_eq!(Failed::Declined.said(Program::Mortar, Form::Text).code, 1);
    }
}

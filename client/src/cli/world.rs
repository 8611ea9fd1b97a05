//! What commands work on: the cluster, which answers requests, and the person, who answers questions.

use std::io::{BufRead, IsTerminal, Write};

use mortar_protocol::admin::{AdminReply, AdminRequest};

use super::admin::Admin;
use super::flags::{Globals, Mode};
use super::said::Failed;

/// The world of a command.
pub(crate) trait World {
    /// Asks the control plane. A refusal is an answer.
    ///
    /// # Errors
    /// If no daemon answers.
    fn ask(&mut self, request: AdminRequest) -> Result<AdminReply, Failed>;

    /// Asks the person.
    ///
    /// # Errors
    /// If the person says no.
    fn confirm(&mut self, question: &str) -> Result<(), Failed>;
}

/// The real one. A daemon is looked for once it is needed.
pub(crate) struct Real<'a> {
    globals: &'a Globals,
    admin: Option<Admin>,
}

impl<'a> Real<'a> {
    /// As the flags say.
    pub(crate) fn new(globals: &'a Globals) -> Self {
        Self {
            globals,
            admin: None,
        }
    }
}

impl World for Real<'_> {
    fn ask(&mut self, request: AdminRequest) -> Result<AdminReply, Failed> {
        let admin = match &mut self.admin {
            Some(admin) => admin,
            none => none.insert(Admin::connect(self.globals).map_err(Failed::Unanswered)?),
        };
        admin.ask(&request).map_err(Failed::Unanswered)
    }

    fn confirm(&mut self, question: &str) -> Result<(), Failed> {
        if !asks(self.globals.mode, std::io::stdin().is_terminal()) {
            return Ok(());
        }
        print!("{question} (y/n) ");
        // A closed output leaves the question unanswered, and that is a no.
        let _ = std::io::stdout().flush();
        let mut answer = String::new();
        let _ = std::io::stdin().lock().read_line(&mut answer);
        if is_yes(&answer) {
            Ok(())
        } else {
            Err(Failed::Declined)
        }
    }
}

/// Whether a question is asked at all.
fn asks(mode: Mode, terminal: bool) -> bool {
    match mode {
        Mode::Script => false,
        Mode::Interactive => true,
        Mode::Terminal => terminal,
    }
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A world whose answers are known beforehand.
    #[derive(Default)]
    pub(crate) struct Told {
        /// The control plane's answers, in order.
        pub(crate) replies: Vec<AdminReply>,
        /// What was asked of it.
        pub(crate) asked: Vec<AdminRequest>,
        /// What the person was asked.
        pub(crate) questions: Vec<String>,
        /// The person says no.
        pub(crate) no: bool,
    }

    impl Told {
        /// With these answers.
        pub(crate) fn with(replies: impl IntoIterator<Item = AdminReply>) -> Self {
            Self {
                replies: replies.into_iter().collect(),
                ..Self::default()
            }
        }
    }

    impl World for Told {
        fn ask(&mut self, request: AdminRequest) -> Result<AdminReply, Failed> {
            self.asked.push(request);
            if self.replies.is_empty() {
                return Err(Failed::Unanswered("nobody is there".to_owned()));
            }
            Ok(self.replies.remove(0))
        }

        fn confirm(&mut self, question: &str) -> Result<(), Failed> {
            self.questions.push(question.to_owned());
            if self.no {
                Err(Failed::Declined)
            } else {
                Ok(())
            }
        }
    }

    #[test]
    fn questions_are_for_terminals() {
        assert!(asks(Mode::Terminal, true));
        assert!(!asks(Mode::Terminal, false));
        assert!(!asks(Mode::Script, true));
        assert!(asks(Mode::Interactive, false));
        for (answer, yes) in [
            ("y\n", true),
            (" Yes \n", true),
            ("n\n", false),
            ("", false),
        ] {
            assert_eq!(is_yes(answer), yes, "{answer:?}");
        }
    }
}

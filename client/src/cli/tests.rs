//! Whole command lines, up to what the control plane is asked.

use super::world::tests::Told;
use super::*;

/// Runs a command line in a world of known answers.
pub(crate) fn run(program: Program, line: &str, told: &mut Told) -> Said {
    let args: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
    match flags::parse(&args) {
        Ok(Line::Words(globals, words)) => run_words(program, &globals, told, &words),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn commands_can_be_abbreviated() {
    use mortar_protocol::admin::AdminRequest;
    for (line, request) in [
        ("vol info", AdminRequest::Info { volume: None }),
        (
            "v start a",
            AdminRequest::Start {
                volume: "a".to_owned(),
                force: false,
            },
        ),
        ("pool l", AdminRequest::Peers),
        ("pe st", AdminRequest::Peers),
        ("c s", AdminRequest::Cluster),
        ("o l", AdminRequest::Operations),
    ] {
        let mut told = Told::default();
        let said = run(Program::Mortar, line, &mut told);
        assert_eq!(told.asked, [request], "{line}");
        assert_eq!((said.err.as_str(), said.code), ("nobody is there\n", 1));
    }
}

#[test]
fn words_that_are_not_there_are_named_with_their_position() {
    let mut told = Told::default();
    for (line, what) in [
        ("foo", "unrecognized word: foo (position 0)"),
        ("volume foo", "unrecognized word: foo (position 1)"),
        ("peer foo", "unrecognized word: foo (position 1)"),
        ("pool foo", "unrecognized word: foo (position 1)"),
        ("cluster foo", "unrecognized word: foo (position 1)"),
        ("p status", "ambiguous word: p (position 0): peer, pool"),
        (
            "v st a",
            "ambiguous word: st (position 1): start, status, stop",
        ),
    ] {
        let said = run(Program::Gluster, line, &mut told);
        assert!(
            said.out.starts_with(&format!("{what}\n\n Usage: gluster")),
            "{}",
            said.out
        );
        assert_eq!(said.code, 1);
        let said = run(Program::Mortar, line, &mut told);
        assert_eq!(said.err, format!("{what}\nSee `mortar help`.\n"));
    }
    assert!(told.asked.is_empty());
}

#[test]
fn help_and_version_ask_nobody() {
    let mut told = Told::default();
    for line in [
        "help",
        "--help",
        "volume help",
        "volume --help",
        "volume",
        "peer",
        "peer help",
        "pool --help",
        "cluster help",
        "operation --help",
        "volume set help",
        "--version",
        "--print-logdir",
    ] {
        for program in [Program::Mortar, Program::Gluster] {
            let said = run(program, line, &mut told);
            assert_eq!(said.code, 0, "{line}");
            assert!(!said.out.is_empty(), "{line}");
        }
    }
    assert_eq!(run(Program::Mortar, "", &mut told).code, 2);
    assert!(told.asked.is_empty());
}

#[test]
fn gluster_words_the_absence_of_a_daemon() {
    let mut told = Told::default();
    let said = run(Program::Gluster, "volume list", &mut told);
    assert_eq!(
        said.err,
        "Connection failed. Please check if gluster daemon is operational. (nobody is there)\n"
    );
    let said = run(Program::Mortar, "volume list --xml", &mut told);
    assert!(
        said.out
            .contains("<opErrno>107</opErrno>\n  <opErrstr>nobody is there</opErrstr>")
    );
}

//! What a person reads: one line for each refusal.

use super::*;

/// The refusal of a probe, which must be one line.
fn line(asker: &Introduction, other: &Facts) -> String {
    let text = may_probe(asker, other, addr()).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn what_is_fit_and_what_need_not_be_done() {
    let asker = own();
    let verdict = |other: &Facts| may_probe(&asker, other, addr()).unwrap();
    assert_eq!(verdict(&fit()), Verdict::Fit);
    let mut member = fit();
    member.who.cluster = CLUSTER;
    member.others = 4;
    member.volumes = 3;
    assert_eq!(verdict(&member), Verdict::Already);
    let mut itself = member;
    itself.who = asker.clone();
    assert_eq!(verdict(&itself), Verdict::Itself);
    // Clocks that are just near enough.
    let mut late = fit();
    late.who.wall_ms = asker.wall_ms - MAX_CLOCK_OFFSET_MS as i64;
    assert_eq!(verdict(&late), Verdict::Fit);
}

#[test]
fn a_node_of_another_cluster() {
    let mut other = fit();
    other.others = 1;
    // Of all that is wrong the first is told.
    other.volumes = 7;
    assert_eq!(
        line(&own(), &other),
        "10.0.0.2:24007 belongs to another cluster (00000000-0000-0000-0000-000000000002, with 1 other node): \
         `mortar peer detach` it there first"
    );
    other.others = 2;
    assert!(line(&own(), &other).contains("with 2 other nodes)"));
}

#[test]
fn a_node_with_volumes() {
    let mut other = fit();
    other.volumes = 2;
    assert_eq!(
        line(&own(), &other),
        "10.0.0.2:24007 has 2 volumes of its own: `mortar volume delete` there first, or probe the nodes of this \
         cluster from there if they have none"
    );
}

#[test]
fn a_copy_of_this_node() {
    let mut other = fit();
    other.who = Introduction { run: 2, ..own() };
    let told = "10.0.0.2:24007 has the id of a node of this cluster (00000000-0000-0000-0000-00000000000a): its data \
                directory is a copy; stop mortard there, remove that copy (its identity with it) and start mortard \
                again, so that it gets an id of its own";
    assert_eq!(line(&own(), &other), told);
    other.who.cluster = ClusterId(9);
    assert_eq!(line(&own(), &other), told);
}

#[test]
fn no_common_version() {
    let mut other = fit();
    other.who.release = "9.2.0".to_owned();
    other.who.wire = Wire {
        oldest: 7,
        newest: 9,
    };
    assert_eq!(
        line(&own(), &other),
        "10.0.0.2:24007 runs Mortar 9.2.0 (wire versions 7 to 9), this node Mortar 0.1.0 (wire version 1): they have \
         no wire version in common; upgrade the older one"
    );
    let wire = |oldest, newest| Wire { oldest, newest };
    assert!(wire(1, 3).meets(wire(3, 4)) && wire(3, 4).meets(wire(1, 3)));
    assert!(!wire(1, 2).meets(wire(3, 4)) && !wire(3, 4).meets(wire(1, 2)));
}

#[test]
fn clocks_apart() {
    let asker = own();
    let mut other = fit();
    other.who.wall_ms = asker.wall_ms + 61_250;
    assert_eq!(
        line(&asker, &other),
        "the clock of 10.0.0.2:24007 is 61.2 s ahead of this node's, and more than 60 s is not allowed: set both right \
         (NTP), then probe again"
    );
    other.who.wall_ms = asker.wall_ms - 86_400_000;
    assert!(line(&asker, &other).contains("is 86400.0 s behind this node's"));
    other.who.wall_ms = i64::MIN;
    assert!(line(&asker, &other).contains("behind"));
}

#[test]
fn secret_files_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let told = |file: &SecretFile| {
        let text = file.load().unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        assert_eq!(file.ensure().unwrap_err().to_string(), text);
        text.replace(&dir.path().display().to_string(), "DIR")
    };
    let open = secret(dir.path(), "open", GOOD);
    for mode in [0o640, 0o604, 0o620, 0o602] {
        std::fs::set_permissions(open.path(), PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(
            told(&open),
            format!(
                "secret file DIR/open has mode {mode:04o}, so others can read or change it: chmod 600 it, and put a \
                 new secret on all nodes if somebody may have seen it"
            )
        );
    }
    std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o400)).unwrap();
    assert!(open.load().is_ok());
    assert_eq!(
        told(&secret(dir.path(), "short", "0123456789abcde \n\n")),
        "secret file DIR/short holds 15 characters, 16 is the least: copy the file of another node of the cluster, or \
         remove it, and mortard makes a new one at its next start"
    );
    assert_eq!(
        told(&secret(dir.path(), "long", &"x".repeat(4_097))),
        "secret file DIR/long holds more than 4096 bytes: is it the right file?"
    );
    let place = SecretFile::new(dir.path());
    let text = place.load().unwrap_err().to_string();
    assert!(text.contains("it is not a file"), "{text}");
    let absent = SecretFile::new(dir.path().join("absent"));
    let text = absent.load().unwrap_err().to_string();
    let end = format!("make it usable for uid {uid}, or name another --secret-file");
    assert!(text.ends_with(&end), "{text}");
    let foreign = SecretError::Foreign {
        path: "/etc/mortar/secret".into(),
        owner: 5,
        uid: 0,
    };
    assert_eq!(
        foreign.to_string(),
        "secret file /etc/mortar/secret belongs to uid 5: chown it to uid 0, which mortard runs as"
    );
}

#[test]
fn texts_of_the_other_side_cannot_leave_their_line() {
    let mut other = fit();
    other.who.release = format!("9\n\x1b[2J{}", "x".repeat(1_000));
    other.host = "a\tb".to_owned();
    other.addrs = vec![addr(); 10_000];
    let clean = other.clean();
    assert_eq!(clean.who.release.chars().count(), 255);
    assert!(clean.who.release.starts_with("9??[2Jx"));
    assert_eq!((clean.host.as_str(), clean.addrs.len()), ("a?b", 64));
}

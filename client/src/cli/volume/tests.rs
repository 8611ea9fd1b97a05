//! Volumes, as recorded of gluster 10.3.

use std::collections::BTreeMap;

use mortar_protocol::admin::BrickSpec;
use mortar_protocol::entry::Space;
use mortar_protocol::ids::{BrickId, NodeId, VolumeId};
use mortar_protocol::placement::Layout;
use mortar_protocol::view::BrickInfo;

use crate::cli::tests::run;
use crate::cli::world::tests::Told;

use super::*;

mod recorded;

use recorded::{
    GET_TIMEOUT, INFO_TEXT, INFO_XML, LIST_XML, STATUS_OFFLINE, STATUS_TEXT, STATUS_XML,
};

const NODES: [u128; 3] = [
    0x18c3_ed55_4f4b_401e_bf3f_4f69_a773_b1d3,
    0xbeea_cb2b_b7d8_4465_8dc2_01e3_97e6_33cb,
    0x2904_b350_b03d_437e_8831_6533_7dae_63be,
];

/// A volume of three nodes whose bricks go by its name.
fn volume(name: &str, kind: SetKind, sets: usize) -> VolumeInfo {
    let brick = |at: usize| BrickInfo {
        id: BrickId(at as u128 + 1),
        node: NodeId(NODES[at % 3]),
        host: format!("10.77.0.{}", at % 3 + 1),
        path: match at / 3 {
            0 => format!("/bricks/{name}"),
            more => format!("/bricks/{name}{more}"),
        },
    };
    let bricks: Vec<BrickInfo> = (0..sets * kind.width()).map(brick).collect();
    VolumeInfo {
        id: VolumeId(0x31c6_d837_b998_4efb_b2ea_4d02_5b27_690a),
        name: name.to_owned(),
        kind,
        state: VolumeState::Started,
        layout: Layout::even(sets as u32),
        sets: bricks.chunks(kind.width()).map(<[_]>::to_vec).collect(),
        options: BTreeMap::new(),
        shard_size: 64 << 20,
        version: 1,
    }
}

fn rep3() -> VolumeInfo {
    volume("rep3", SetKind::Replicate { copies: 3 }, 1)
}

fn status_reply(volume: VolumeInfo, online: bool, reason: &str) -> AdminReply {
    let ports = [54_735, 50_316, 60_004];
    let pids = [9_272, 9_307, 9_300];
    let bricks = volume.sets.iter().flatten().enumerate();
    let bricks = bricks.map(|(at, brick)| BrickStatus {
        brick: brick.id,
        spec: BrickSpec {
            host: brick.host.clone(),
            path: brick.path.clone(),
        },
        online,
        in_sync: online,
        port: ports[at],
        pid: pids[at],
        reason: reason.to_owned(),
        space: online.then_some(Space {
            total: 252 << 30,
            free: 237 << 30,
            free_now: 237 << 30,
            ring_free: 8 << 20,
            inodes: 17,
        }),
    });
    AdminReply::Status {
        bricks: bricks.collect(),
        volume,
        clients: 0,
    }
}

/// Runs a command under gluster's name with these answers; it must succeed.
#[track_caller]
fn out(line: &str, replies: impl IntoIterator<Item = AdminReply>) -> String {
    let said = run(Program::Gluster, line, &mut Told::with(replies));
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{line}");
    said.out
}

#[track_caller]
fn refused(line: &str, message: &str, err: &str) {
    let reply = AdminReply::Refused {
        message: message.to_owned(),
    };
    // `--xml` and the question before a stop ask for the volume first.
    let said = run(Program::Gluster, line, &mut Told::with([reply]));
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{line}");
    assert_eq!(said.err, err, "{line}");
}

#[test]
fn lists_are_as_recorded() {
    let all = ["arb", "dist", "dr", "ec", "ec6", "rep2", "rep3"];
    let volumes = || AdminReply::Volumes(all.map(|name| volume(name, SetKind::Plain, 3)).to_vec());
    assert_eq!(
        out("volume list", [volumes()]),
        "arb\ndist\ndr\nec\nec6\nrep2\nrep3\n"
    );
    assert_eq!(out("volume list --xml", [volumes()]), LIST_XML);
    for (line, text) in [
        ("volume list", "No volumes present in cluster\n"),
        ("volume info", "No volumes present\n"),
        ("volume status", "No volumes present\n"),
    ] {
        let said = run(
            Program::Gluster,
            line,
            &mut Told::with([AdminReply::Volumes(Vec::new())]),
        );
        let want = Said {
            err: text.to_owned(),
            ..Said::default()
        };
        assert_eq!(said, want, "{line}");
    }
}

#[test]
fn info_is_as_recorded() {
    let mut info = rep3();
    info.state = VolumeState::Created;
    info.options = [
        ("cluster.granular-entry-heal", "on"),
        ("storage.fips-mode-rchecksum", "on"),
        ("transport.address-family", "inet"),
        ("nfs.disable", "on"),
        ("performance.client-io-threads", "off"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let reply = || [AdminReply::Volumes(vec![info.clone()])];
    assert_eq!(out("volume info rep3", reply()), INFO_TEXT);
    assert_eq!(out("volume info rep3 --xml", reply()), INFO_XML);
    refused(
        "volume info nope",
        "Volume nope does not exist",
        "Volume nope does not exist\n",
    );
}

#[test]
fn info_counts_bricks_as_gluster_does() {
    let disperse = SetKind::Disperse {
        data: 4,
        redundancy: 2,
    };
    for (kind, sets, name, count, number) in [
        (SetKind::Plain, 1, "Distribute", "1", 0),
        (SetKind::Plain, 3, "Distribute", "3", 0),
        (
            SetKind::Replicate { copies: 3 },
            2,
            "Distributed-Replicate",
            "2 x 3 = 6",
            5,
        ),
        (
            SetKind::Replicate { copies: 2 },
            1,
            "Replicate",
            "1 x 2 = 2",
            2,
        ),
        (disperse, 1, "Disperse", "1 x (4 + 2) = 6", 4),
        (disperse, 2, "Distributed-Disperse", "2 x (4 + 2) = 12", 7),
    ] {
        let reply = || [AdminReply::Volumes(vec![volume("v", kind, sets)])];
        let text = out("volume info v", reply());
        assert!(text.contains(&format!("\nType: {name}\n")), "{text}");
        assert!(
            text.contains(&format!("\nNumber of Bricks: {count}\n")),
            "{text}"
        );
        let xml = out("volume info v --xml", reply());
        assert!(
            xml.contains(&format!(
                "<type>{number}</type>\n        <typeStr>{name}</typeStr>"
            )),
            "{xml}"
        );
        assert!(
            xml.contains(&format!("<distCount>{sets}</distCount>")),
            "{xml}"
        );
    }
}

#[test]
fn status_is_as_recorded() {
    let online = || [status_reply(rep3(), true, "")];
    assert_eq!(out("volume status rep3", online()), STATUS_TEXT);
    assert_eq!(out("volume status rep3 --xml", online()), STATUS_XML);
    // The reasons go where they do not disturb who reads the table.
    let offline = || Told::with([status_reply(rep3(), false, "gone")]);
    let said = run(Program::Gluster, "volume status rep3", &mut offline());
    assert_eq!(said.out, STATUS_OFFLINE);
    let reasons: Vec<&str> = said.err.lines().collect();
    assert_eq!(reasons[0], "Brick 10.77.0.1:/bricks/rep3: gone");
    assert_eq!(reasons.len(), 3);
    let said = run(Program::Mortar, "volume status rep3", &mut offline());
    assert_eq!(
        said.out,
        format!("{STATUS_OFFLINE}{}", reasons.join("\n") + "\n")
    );
    refused(
        "volume status rep3",
        "Volume rep3 is not started",
        "Volume rep3 is not started\n",
    );
}

#[test]
fn status_of_all_names_those_that_are_not_started() {
    let mut rep2 = volume("rep2", SetKind::Replicate { copies: 2 }, 1);
    rep2.state = VolumeState::Created;
    let replies = [
        AdminReply::Volumes(vec![rep2, rep3()]),
        status_reply(rep3(), true, ""),
    ];
    let said = run(Program::Gluster, "volume status", &mut Told::with(replies));
    assert_eq!(said.out, STATUS_TEXT);
    assert_eq!(
        (said.err.as_str(), said.code),
        ("Volume rep2 is not started\n", 0)
    );
}

#[test]
fn long_names_are_broken_where_gluster_breaks_them() {
    let mut info = volume("v", SetKind::Plain, 1);
    info.sets[0][0].path = format!("/bricks/{}", "x".repeat(40));
    let text = out("volume status v", [status_reply(info, true, "")]);
    let lines: Vec<&str> = text.lines().skip(3).take(2).collect();
    assert_eq!(
        lines[0],
        format!("Brick 10.77.0.1:/bricks/{}", "x".repeat(19))
    );
    assert_eq!(
        lines[1],
        format!("{:<44}54735     0          Y       9272 ", "x".repeat(21))
    );
}

#[test]
fn detail_has_the_rows_of_gluster() {
    let text = out(
        "volume status rep3 detail",
        [status_reply(rep3(), true, "")],
    );
    assert!(
        text.starts_with(
            "Status of volume: rep3\n\
         ------------------------------------------------------------------------------\n\
         Brick                : Brick 10.77.0.1:/bricks/rep3\n\
         TCP Port             : 54735               \n\
         RDMA Port            : 0                   \n\
         Online               : Y                   \n\
         Pid                  : 9272                \n\
         File System          : mortar              \n\
         Device               : /bricks/rep3        \n\
         Mount Options        : N/A                 \n\
         Inode Size           : N/A                 \n\
         Disk Space Free      : 237.0GB             \n\
         Total Disk Space     : 252.0GB             \n\
         Inode Count          : 17                  \n\
         Free Inodes          : N/A                 \n\
         In sync              : Y                   \n\
         ------------------------------------------------------------------------------\n"
        ),
        "{text}"
    );
    assert!(text.ends_with("\n \n"));
    let xml = out(
        "volume status rep3 detail --xml",
        [status_reply(rep3(), true, "")],
    );
    assert!(
        xml.contains("<pid>9272</pid>\n          <sizeTotal>270582939648</sizeTotal>"),
        "{xml}"
    );
}

#[test]
fn changes_say_what_is_recorded() {
    for (line, text) in [
        (
            "volume create rep3 replica 3 a:/b b:/b c:/b",
            "volume create: rep3: success: please start the volume to access data\n",
        ),
        ("volume start rep3", "volume start: rep3: success\n"),
        ("volume stop rep3", "volume stop: rep3: success\n"),
        ("volume delete rep3", "volume delete: rep3: success\n"),
        (
            "volume set rep3 performance.readdir-ahead on",
            "volume set: success\n",
        ),
        (
            "volume reset rep3",
            "volume reset: success: reset volume successful\n",
        ),
    ] {
        assert_eq!(out(line, [AdminReply::Done]), text, "{line}");
    }
    let noted = AdminReply::Notes(vec!["it does nothing here".to_owned()]);
    assert_eq!(
        out("volume set v a b", [noted]),
        "it does nothing here\nvolume set: success\n"
    );
    for (line, message, err) in [
        (
            "volume create rep3 a:/b",
            "Volume rep3 already exists",
            "volume create: rep3: failed: Volume rep3 already exists\n",
        ),
        (
            "volume start nope",
            "Volume nope does not exist",
            "volume start: nope: failed: Volume nope does not exist\n",
        ),
        (
            "volume stop nope",
            "Volume nope does not exist",
            "volume stop: nope: failed: Volume nope does not exist\n",
        ),
        (
            "volume delete rep3",
            "Volume rep3 has been started.Volume needs to be stopped before deletion.",
            "volume delete: rep3: failed: Volume rep3 has been started.Volume needs to be stopped before deletion.\n",
        ),
        (
            "volume set rep3 nope.option 1",
            "option : nope.option does not exist\nDid you mean nfs.port?",
            "volume set: failed: option : nope.option does not exist\nDid you mean nfs.port?\n",
        ),
    ] {
        refused(line, message, err);
    }
}

#[test]
fn changes_in_xml_name_the_volume() {
    let info = || AdminReply::Volumes(vec![rep3()]);
    for (line, element, replies) in [
        (
            "volume create rep3 a:/b --xml",
            "volCreate",
            [AdminReply::Done, info()],
        ),
        (
            "volume start rep3 --xml",
            "volStart",
            [info(), AdminReply::Done],
        ),
        (
            "volume stop rep3 --xml",
            "volStop",
            [info(), AdminReply::Done],
        ),
        (
            "volume delete rep3 --xml",
            "volDelete",
            [info(), AdminReply::Done],
        ),
    ] {
        assert_eq!(
            out(line, replies),
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n<cliOutput>\n  <opRet>0</opRet>\n  \
                 <opErrno>0</opErrno>\n  <opErrstr/>\n  <{element}>\n    <volume>\n      <name>rep3</name>\n      \
                 <id>31c6d837-b998-4efb-b2ea-4d025b27690a</id>\n    </volume>\n  </{element}>\n</cliOutput>\n"
            ),
            "{line}"
        );
    }
    let no = || AdminReply::Refused {
        message: "Volume nope does not exist".to_owned(),
    };
    let said = run(
        Program::Gluster,
        "volume start nope --xml",
        &mut Told::with([no(), no()]),
    );
    assert!(said.out.contains("<opRet>-1</opRet>"), "{}", said.out);
    assert!(
        said.out
            .contains("<opErrstr>Volume nope does not exist</opErrstr>"),
        "{}",
        said.out
    );
    assert_eq!((said.err.as_str(), said.code), ("", 1));
    assert!(
        out("volume reset v --xml", [AdminReply::Done])
            .contains("  <cliOp>volReset</cliOp>\n  <output>reset volume successful</output>\n")
    );
}

#[test]
fn options_are_shown_as_recorded() {
    let reply = || [AdminReply::Volumes(vec![rep3()])];
    assert_eq!(
        out("volume get rep3 network.ping-timeout", reply()),
        GET_TIMEOUT
    );
    let all = out("volume get rep3 all", reply());
    assert!(all.lines().count() > 20);
    // Two columns of 80 characters, but for longer names and values.
    let is_padded = |line: &str| {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        let (name, value) = (name.chars().count(), value.trim().chars().count());
        line.chars().count() == name.max(40) + 1 + value.max(39)
    };
    assert!(all.lines().all(is_padded), "{all}");
    let mut set = rep3();
    set.options
        .insert("network.ping-timeout".to_owned(), "7".to_owned());
    let set = || [AdminReply::Volumes(vec![set.clone()])];
    let xml = out("volume get rep3 network.ping-timeout --xml", set());
    assert!(xml.contains(
        "  <volGetopts>\n    <count>1</count>\n    <Opt>\n      <Option>network.ping-timeout</Option>\n      \
         <Value>7</Value>\n    </Opt>\n  </volGetopts>\n"
    ), "{xml}");
    let json = out("volume get rep3 network.ping-timeout --json", set());
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["options"][0]["value"], "7");
    assert_eq!(value["options"][0]["default"], false);
    let said = run(
        Program::Gluster,
        "volume get rep3 nope",
        &mut Told::with(reply()),
    );
    assert!(
        said.err
            .starts_with("volume get option: failed: option : nope does not exist\n")
    );
    refused(
        "volume get nope all",
        "Volume nope does not exist",
        "volume get option: failed: Volume nope does not exist\n",
    );
}

#[test]
fn questions_are_glusters() {
    for (line, asked) in [
        ("volume stop v", vec![STOP_QUESTION]),
        ("volume stop v force", vec![STOP_QUESTION]),
        ("volume delete v", vec![DELETE_QUESTION]),
        (
            "volume create v replica 2 a:/b b:/b",
            vec![create::REPLICA_2],
        ),
        ("volume create v replica 2 a:/b b:/b force", vec![]),
        ("volume create v replica 3 a:/b b:/b c:/b", vec![]),
        ("volume start v", vec![]),
    ] {
        let mut told = Told::with([AdminReply::Done]);
        told.no = true;
        let said = run(Program::Gluster, line, &mut told);
        assert_eq!(told.questions, asked, "{line}");
        assert_eq!(told.asked.is_empty(), !asked.is_empty(), "{line}");
        assert_eq!(said.code, 0, "{line}");
    }
    // mortar also says who would be hurt.
    let AdminReply::Status { volume, bricks, .. } = status_reply(rep3(), true, "") else {
        panic!("a status");
    };
    let mounted = AdminReply::Status {
        volume,
        bricks,
        clients: 2,
    };
    let mut told = Told::with([mounted, AdminReply::Done]);
    run(Program::Mortar, "volume stop rep3", &mut told);
    assert_eq!(
        told.questions,
        [format!("rep3 is mounted by 2 clients. {STOP_QUESTION}")]
    );
}

#[test]
fn wrong_use_shows_the_usage() {
    for (line, usage) in [
        ("volume create", CREATE),
        ("volume create bad/name a:/b", CREATE),
        ("volume delete", DELETE),
        ("volume delete a b", DELETE),
        ("volume get v", GET),
        ("volume info a b", INFO),
        ("volume list a", LIST),
        ("volume reset", RESET),
        ("volume set v a", SET),
        ("volume set v", SET),
        ("volume start", START),
        ("volume start v forced", START),
        ("volume stop v force x", STOP),
        ("volume status v clients", STATUS),
    ] {
        let mut told = Told::default();
        let said = run(Program::Gluster, line, &mut told);
        assert_eq!(said.err, format!("\nUsage:\n{usage}\n\n"), "{line}");
        assert_eq!((said.out.as_str(), said.code), ("", 1));
        assert!(told.asked.is_empty());
    }
}

#[test]
fn json_has_its_fields() {
    let value = |line: &str, reply: AdminReply| -> serde_json::Value {
        serde_json::from_str(&out(line, [reply])).expect("JSON")
    };
    let list = value("volume list --json", AdminReply::Volumes(vec![rep3()]));
    assert_eq!(list, serde_json::json!({ "volumes": ["rep3"] }));
    let info = value("volume info --json", AdminReply::Volumes(vec![rep3()]));
    let volume = &info["volumes"][0];
    assert_eq!(volume["state"], "started");
    assert_eq!(
        (&volume["kind"], &volume["copies"]),
        (&"replicate".into(), &3.into())
    );
    assert_eq!(volume["sets"][0]["bricks"][2]["host"], "10.77.0.3");
    assert_eq!(volume["id"], "31c6d837-b998-4efb-b2ea-4d025b27690a");
    let status = value(
        "volume status rep3 --json",
        status_reply(rep3(), false, "gone"),
    );
    let brick = &status["volumes"][0]["bricks"][0];
    assert_eq!(brick["online"], false);
    assert_eq!(brick["reason"], "gone");
    assert!(brick["pid"].is_null() && brick["port"].is_null() && brick["space"].is_null());
    let status = value("volume status rep3 --json", status_reply(rep3(), true, ""));
    assert_eq!(
        status["volumes"][0]["bricks"][0]["space"]["total"],
        252_u64 << 30
    );
    let set = value(
        "volume set v a b --json",
        AdminReply::Notes(vec!["x".to_owned()]),
    );
    assert_eq!(
        set,
        serde_json::json!({ "volume": "v", "done": true, "notes": ["x"] })
    );
}

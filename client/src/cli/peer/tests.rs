//! Nodes, as recorded of gluster 10.3 with three peers.

use mortar_protocol::ids::NodeId;

use crate::cli::flags::Program;
use crate::cli::tests::run;
use crate::cli::world::tests::Told;

use super::*;

const STATUS_1: &str = "\
Number of Peers: 2\n\
\n\
Hostname: 10.77.0.2\n\
Uuid: beeacb2b-b7d8-4465-8dc2-01e397e633cb\n\
State: Peer in Cluster (Connected)\n\
\n\
Hostname: 10.77.0.3\n\
Uuid: 2904b350-b03d-437e-8831-65337dae63be\n\
State: Peer in Cluster (Connected)\n\
";

const POOL_1: &str = "\
UUID\t\t\t\t\tHostname \tState\n\
beeacb2b-b7d8-4465-8dc2-01e397e633cb\t10.77.0.2\tConnected \n\
2904b350-b03d-437e-8831-65337dae63be\t10.77.0.3\tConnected \n\
18c3ed55-4f4b-401e-bf3f-4f69a773b1d3\tlocalhost\tConnected \n\
";

const STATUS_XML: &str = "\
<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n\
<cliOutput>\n\
\x20 <opRet>0</opRet>\n\
\x20 <opErrno>0</opErrno>\n\
\x20 <opErrstr/>\n\
\x20 <peerStatus>\n\
\x20   <peer>\n\
\x20     <uuid>beeacb2b-b7d8-4465-8dc2-01e397e633cb</uuid>\n\
\x20     <hostname>10.77.0.2</hostname>\n\
\x20     <hostnames>\n\
\x20       <hostname>10.77.0.2</hostname>\n\
\x20     </hostnames>\n\
\x20     <connected>1</connected>\n\
\x20     <state>3</state>\n\
\x20     <stateStr>Peer in Cluster</stateStr>\n\
\x20   </peer>\n\
\x20   <peer>\n\
\x20     <uuid>2904b350-b03d-437e-8831-65337dae63be</uuid>\n\
\x20     <hostname>10.77.0.3</hostname>\n\
\x20     <hostnames>\n\
\x20       <hostname>10.77.0.3</hostname>\n\
\x20     </hostnames>\n\
\x20     <connected>1</connected>\n\
\x20     <state>3</state>\n\
\x20     <stateStr>Peer in Cluster</stateStr>\n\
\x20   </peer>\n\
\x20 </peerStatus>\n\
</cliOutput>\n\
";

const POOL_XML: &str = "\
<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n\
<cliOutput>\n\
\x20 <opRet>0</opRet>\n\
\x20 <opErrno>0</opErrno>\n\
\x20 <opErrstr/>\n\
\x20 <peerStatus>\n\
\x20   <peer>\n\
\x20     <uuid>beeacb2b-b7d8-4465-8dc2-01e397e633cb</uuid>\n\
\x20     <hostname>10.77.0.2</hostname>\n\
\x20     <hostnames>\n\
\x20       <hostname>10.77.0.2</hostname>\n\
\x20     </hostnames>\n\
\x20     <connected>1</connected>\n\
\x20     <state>3</state>\n\
\x20     <stateStr>Peer in Cluster</stateStr>\n\
\x20   </peer>\n\
\x20   <peer>\n\
\x20     <uuid>2904b350-b03d-437e-8831-65337dae63be</uuid>\n\
\x20     <hostname>10.77.0.3</hostname>\n\
\x20     <hostnames>\n\
\x20       <hostname>10.77.0.3</hostname>\n\
\x20     </hostnames>\n\
\x20     <connected>1</connected>\n\
\x20     <state>3</state>\n\
\x20     <stateStr>Peer in Cluster</stateStr>\n\
\x20   </peer>\n\
\x20   <peer>\n\
\x20     <uuid>18c3ed55-4f4b-401e-bf3f-4f69a773b1d3</uuid>\n\
\x20     <hostname>localhost</hostname>\n\
\x20     <connected>1</connected>\n\
\x20   </peer>\n\
\x20 </peerStatus>\n\
</cliOutput>\n\
";

const DETACH_QUESTION: &str = "All clients mounted through the peer which is getting detached need to be remounted using one of the other active peers in the trusted storage pool to ensure client gets notification on any changes done on the gluster configuration and if the same has been done do you want to proceed? (y/n) ";
const DETACH_REFUSED: &str = "peer detach: failed: Peer 10.77.0.3 hosts one or more bricks. If the peer is in not recoverable state then use either replace-brick or remove-brick command with force to remove all bricks from the peer and attempt the peer detach again.\n";

const NODES: [u128; 3] = [
    0x18c3_ed55_4f4b_401e_bf3f_4f69_a773_b1d3,
    0xbeea_cb2b_b7d8_4465_8dc2_01e3_97e6_33cb,
    0x2904_b350_b03d_437e_8831_6533_7dae_63be,
];

/// The three nodes as the first tells of them.
fn peers() -> Vec<PeerInfo> {
    let peer = |at: u8| PeerInfo {
        id: NodeId(NODES[usize::from(at)]),
        host: format!("10.77.0.{}", at + 1),
        other_names: Vec::new(),
        addrs: vec![([10, 77, 0, at + 1], 24_007).into()],
        state: PeerState::Joined,
        connected: true,
        is_self: at == 0,
    };
    (0..3).map(peer).collect()
}

#[track_caller]
fn out(line: &str, reply: AdminReply) -> String {
    let said = run(Program::Gluster, line, &mut Told::with([reply]));
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{line}");
    said.out
}

#[test]
fn peers_are_shown_as_recorded() {
    let reply = || AdminReply::Peers(peers());
    assert_eq!(out("peer status", reply()), STATUS_1);
    assert_eq!(out("peer status --xml", reply()), STATUS_XML);
    assert_eq!(out("pool list", reply()), POOL_1);
    assert_eq!(out("pool list --xml", reply()), POOL_XML);
    let alone = AdminReply::Peers(peers()[..1].to_vec());
    assert_eq!(out("peer status", alone), "Number of Peers: 0\n");
}

#[test]
fn a_node_that_is_away_or_on_its_way_is_shown_so() {
    let mut all = peers();
    all[1].connected = false;
    all[1].other_names = vec!["two".to_owned(), "two.example.org".to_owned()];
    all[2].state = PeerState::Joining;
    let text = out("peer status", AdminReply::Peers(all.clone()));
    assert!(text.contains(
        "State: Peer in Cluster (Disconnected)\nOther names:\ntwo\ntwo.example.org\n\nHostname: 10.77.0.3\n"
    ), "{text}");
    assert!(
        text.ends_with("State: Probe Sent to Peer (Connected)\n"),
        "{text}"
    );
    let pool = out("pool list", AdminReply::Peers(all.clone()));
    assert!(pool.contains("\t10.77.0.2\tDisconnected \n"), "{pool}");
    let xml = out("peer status --xml", AdminReply::Peers(all.clone()));
    assert!(xml.contains(
        "<hostname>two.example.org</hostname>\n      </hostnames>\n      <connected>0</connected>\n"
    ), "{xml}");
    all[1].state = PeerState::Leaving;
    let xml = out("peer status --xml", AdminReply::Peers(all.clone()));
    assert!(
        xml.contains("<state>7</state>\n      <stateStr>Peer detach in progress</stateStr>"),
        "{xml}"
    );
    let json = out("pool list --json", AdminReply::Peers(all));
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["peers"][0]["state"], "leaving");
    assert_eq!(value["peers"][0]["addresses"][0], "10.77.0.2:24007");
    assert_eq!(value["peers"][2]["self"], true);
}

#[test]
fn probes_end_as_recorded() {
    assert_eq!(
        out("peer probe 10.77.0.2", AdminReply::Done),
        "peer probe: success\n"
    );
    for (note, number) in [
        ("Host 10.77.0.2 port 24007 already in peer list", 2),
        ("Probe on localhost not needed", 1),
    ] {
        let reply = || AdminReply::Notes(vec![note.to_owned()]);
        assert_eq!(
            out("peer probe 10.77.0.2", reply()),
            format!("peer probe: {note}\n")
        );
        let xml = out("peer probe 10.77.0.2 --xml", reply());
        assert!(xml.contains(&format!(
            "  <opRet>0</opRet>\n  <opErrno>{number}</opErrno>\n  <opErrstr/>\n  <output>{note}</output>\n"
        )), "{xml}");
    }
    let no = || {
        Told::with([AdminReply::Refused {
            message: "Probe returned with Transport endpoint is not connected".to_owned(),
        }])
    };
    let said = run(Program::Gluster, "peer probe 10.77.0.99", &mut no());
    let want = "peer probe: failed: Probe returned with Transport endpoint is not connected\n";
    assert_eq!(
        (said.code, said.err.as_str(), said.out.as_str()),
        (1, want, "")
    );
    let said = run(Program::Gluster, "--xml peer probe 10.77.0.99", &mut no());
    assert!(said.out.contains(
        "  <opRet>-1</opRet>\n  <opErrno>107</opErrno>\n  <opErrstr>Probe returned with Transport endpoint is not \
         connected</opErrstr>\n</cliOutput>\n"
    ), "{}", said.out);
    for (line, host) in [
        ("peer probe [::1]:7", "[::1]:7"),
        ("peer pr node-1.example.org", "node-1.example.org"),
    ] {
        let mut told = Told::with([AdminReply::Done]);
        run(Program::Mortar, line, &mut told);
        let host = host.to_owned();
        assert_eq!(told.asked, [AdminRequest::Probe { host }]);
    }
}

#[test]
fn detach_asks_and_is_refused_as_recorded() {
    let message = DETACH_REFUSED
        .trim_end()
        .replace("peer detach: failed: ", "");
    let mut told = Told::with([AdminReply::Refused { message }]);
    let said = run(Program::Gluster, "peer detach 10.77.0.3", &mut told);
    let questions: Vec<String> = told
        .questions
        .iter()
        .map(|text| format!("{text} (y/n) "))
        .collect();
    assert_eq!(questions, [DETACH_QUESTION]);
    assert_eq!(
        (said.code, said.err.as_str(), said.out.as_str()),
        (255, DETACH_REFUSED, "")
    );
    let mut told = Told::with([AdminReply::Done]);
    let said = run(Program::Mortar, "peer detach two force", &mut told);
    assert_eq!(said.out, "peer detach: success\n");
    let host = "two".to_owned();
    assert_eq!(told.asked, [AdminRequest::Detach { host, force: true }]);
    let mut told = Told::with([AdminReply::Done]);
    told.no = true;
    run(Program::Mortar, "peer detach two", &mut told);
    assert!(told.asked.is_empty(), "detached in spite of a no");
}

#[test]
fn nonsense_is_not_asked() {
    let mut told = Told::default();
    for (line, err) in [
        ("peer probe", format!("\nUsage:\n{PROBE}\n\n")),
        ("peer probe a b", format!("\nUsage:\n{PROBE}\n\n")),
        ("peer detach a forced", format!("\nUsage:\n{DETACH}\n\n")),
        ("peer status x", format!("\nUsage:\n{STATUS}\n\n")),
        ("pool", format!("\nUsage:\n{POOL}\n\n")),
        ("peer probe a/b", "a/b is an invalid address\n".to_owned()),
    ] {
        let said = run(Program::Mortar, line, &mut told);
        assert_eq!((said.err, said.code), (err, 1), "{line}");
    }
    assert!(told.asked.is_empty() && told.questions.is_empty());
}

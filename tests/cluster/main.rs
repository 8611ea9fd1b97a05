//! Clusters of several real nodes: members, volumes over nodes, outages, restarts under load, networks.
//!
//! What does not need one kind of network runs on both: processes on loopback addresses, and network namespaces.

mod files;
mod hostile;
mod members;
mod network;
mod outages;
mod rounds;
mod volumes;
mod voters;

/// One test on processes at loopback addresses and again in network namespaces.
macro_rules! on_both {
    ($name:ident) => {
        mod $name {
            use mortar_tests::real::Net;

            #[test]
            fn on_loopback() {
                super::$name(Net::Loopback);
            }

            #[test]
            fn in_namespaces() {
                if Net::Namespaces.is_available() {
                    super::$name(Net::Namespaces);
                }
            }
        }
    };
}
use on_both;

use std::time::Duration;

/// Time that a command has to answer, whoever is silent.
const ANSWER: Duration = Duration::from_secs(5);
/// Time within which everything that is expected soon has to come.
const SOON: Duration = Duration::from_secs(20);

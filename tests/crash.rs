//! Crashes at every step of a brick's disk: all short sequences of operations.

use mortar_tests::crash::plan;
use mortar_tests::crash::suite::Suite;

/// Sequences of three operations in each run.
const THREES: usize = 500;

fn suite(seed: u64) -> Suite {
    Suite::new(seed).expect("a brick to start with")
}

fn report(what: &str, suite: &Suite, failures: &[String]) {
    println!("crash: {what}: {}", suite.totals);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(suite.totals.crashes + suite.totals.failures > 0);
}

/// Another one in each run, unless the environment names it.
fn seed() -> u64 {
    let named = std::env::var("CRASH_SEED").ok();
    named.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let mut bytes = [0; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .expect("a random number");
        u64::from_le_bytes(bytes) >> 32
    })
}

#[test]
fn sequences_of_one_operation() {
    let mut suite = suite(1);
    suite.thorough = true;
    suite.nested_every = 20;
    let failures = plan::run(&mut suite, plan::ones());
    report("length 1", &suite, &failures);
}

#[test]
fn sequences_of_two_operations() {
    let mut suite = suite(2);
    let failures = plan::run(&mut suite, plan::twos());
    report("length 2", &suite, &failures);
}

#[test]
fn a_choice_of_sequences_of_three_operations() {
    let seed = seed();
    let mut suite = suite(seed);
    let failures = plan::run(&mut suite, plan::some_threes(seed, THREES));
    report(&format!("length 3 (CRASH_SEED={seed})"), &suite, &failures);
}

#[test]
fn failed_flushes() {
    let mut suite = suite(3);
    let sequences = plan::ones().chain(plan::some_threes(3, 20));
    let failed = sequences.filter_map(|steps| suite.failed_flushes(&steps).err());
    let failures: Vec<String> = failed.take(10).collect();
    report("failed flushes", &suite, &failures);
}

//! Crash points: power fails at a random operation, and what was acknowledged must be there.

use weft_sim::life::{Census, Trouble, run};

/// Lives in parallel worlds, one thread each half.
fn worlds(seeds: std::ops::Range<u64>, lives: u64, trouble: Trouble) -> Result<Census, String> {
    let middle = seeds.start + (seeds.end - seeds.start) / 2;
    let half = |seeds: std::ops::Range<u64>| {
        move || {
            let mut census = Census::default();
            for seed in seeds {
                census.add(&run(seed, lives, trouble)?);
            }
            Ok::<_, String>(census)
        }
    };
    let other = std::thread::spawn(half(seeds.start..middle));
    let mut census = half(middle..seeds.end)()?;
    census.add(&other.join().map_err(|_| "a world panicked")??);
    Ok(census)
}

#[test]
fn what_was_acknowledged_survives_five_thousand_power_failures() {
    let census = worlds(0..210, 25, Trouble::None).unwrap();
    println!("{census:#?}");
    assert!(census.total() >= 5_000, "{}", census.total());
    // The crashes must have fallen everywhere, or the number means little.
    for (what, least) in [("write seg", 500), ("sync seg", 500), ("write set", 20), ("sync set", 5), ("write chk", 50)]
    {
        assert!(census.of(what) >= least, "{what}: {} of {least}", census.of(what));
    }
    for (what, least) in [("sync chk", 20), ("remove", 20), ("create", 50), ("sync dir", 50)] {
        assert!(census.of(what) >= least, "{what}: {} of {least}", census.of(what));
    }
    assert!(census.torn_views >= 10, "{}", census.torn_views);
    assert!(census.survived > 100 && census.lost > 100, "{census:?}");
}

#[test]
fn a_failed_sync_is_answered_unknown_and_the_store_goes_on() {
    let census = worlds(10_000..10_030, 20, Trouble::FailedSyncs).unwrap();
    assert!(census.failed_syncs >= 100, "{census:?}");
}

#[test]
fn a_full_disk_refuses_publishes_and_takes_acknowledgements() {
    let census = worlds(20_000..20_020, 20, Trouble::Full).unwrap();
    assert!(census.full >= 20, "{census:?}");
}

#[test]
fn the_check_fails_when_syncs_do_nothing() {
    let caught = (0..20).filter(|seed| run(30_000 + seed, 25, Trouble::LyingSyncs).is_err()).count();
    assert!(caught >= 18, "only {caught} of 20 worlds with a lying disk were caught");
}

//! The end of the demo in a page: promises, orders, latencies, what each service did, where to look.

use std::time::Duration;

use comfy_table::{Table, presets};
use weft_tests::scenes::Seen;
use weft_tests::shop::{Flow, Outcome, Placed, audit};
use weft_tests::{Result, Shop};

/// A scene that was played.
pub struct Played {
    /// What it is called.
    pub title: &'static str,
    /// Nothing was broken on purpose: its latencies mean something.
    pub calm: bool,
    /// What it saw.
    pub seen: Result<Seen>,
}

/// Prints the summary; answers whether every promise held.
pub fn print(shop: &Shop, played: &[Played]) -> Result<bool> {
    let seen: Vec<&Seen> = played.iter().filter_map(|p| p.seen.as_ref().ok()).collect();
    let placed: Vec<&Placed> = seen.iter().flat_map(|s| &s.placed).collect();
    let ended = |outcome| placed.iter().filter(|p| p.outcome == outcome).count();

    println!("\nOrders");
    println!("  placed       {:>6}", placed.len());
    println!("  completed    {:>6}", ended(Outcome::Completed));
    println!("  compensated  {:>6}", ended(Outcome::Compensated));
    let calm = || played.iter().filter(|p| p.calm).filter_map(|p| p.seen.as_ref().ok()).flat_map(|s| &s.placed);
    for (flow, name) in [(Flow::Saga, "saga"), (Flow::Choreography, "choreography")] {
        let mut latencies: Vec<Duration> = calm().filter(|p| p.order.flow == flow).map(|p| p.latency).collect();
        latencies.sort_unstable();
        if let (Some(p50), Some(p99)) = (percentile(&latencies, 50), percentile(&latencies, 99)) {
            let (p50, p99) = (p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
            println!("  {name:<13}p50 {p50:.1} ms, p99 {p99:.1} ms from POST to the known end, on a normal day");
        }
    }

    println!("\nWhat each service did, by its own database");
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (service, did) in audit::work(&shop.dir)? {
        table.add_row([format!(" {service}"), did]);
    }
    println!("{table}");

    println!("\nPromises");
    for scene in played {
        match &scene.seen {
            Ok(seen) => println!("  ✓ {}: {}", scene.title, seen.facts.join("; ")),
            Err(why) => println!("  ✗ {}: {why}", scene.title),
        }
    }
    let broken = played.iter().filter(|p| p.seen.is_err()).count();
    match broken {
        0 => println!("\nEvery promise held."),
        n => println!("\n{n} of {} scenes broke a promise.", played.len()),
    }
    Ok(broken == 0)
}

/// Where to look.
pub fn addresses(shop: &Shop) -> String {
    let (gateway, api) = (shop.weft.gateway, shop.weft.api);
    format!(
        "Gateway http://{gateway}   API http://{api}   metrics http://{api}/metrics   traces http://{api}/v1/traces"
    )
}

fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    // Nearest rank.
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let ms: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&ms, 50), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&ms, 99), Some(Duration::from_millis(198)));
        assert_eq!(percentile(&ms[..1], 99), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&[], 50), None);
    }
}

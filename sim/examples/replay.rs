//! Runs the worlds of a range of seeds and prints the promises they saw broken, to find again what a test found:
//! `cargo run -p weft-sim --example replay -- 90..100 none|fail|full`.

use weft_sim::life::{Trouble, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: replay FIRST..END none|fail|full";
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [seeds, trouble] = args.as_slice() else { return Err(usage.into()) };
    let (first, end) = seeds.split_once("..").ok_or(usage)?;
    let trouble = match trouble.as_str() {
        "none" => Trouble::None,
        "fail" => Trouble::FailedSyncs,
        "full" => Trouble::Full,
        _ => return Err(usage.into()),
    };
    let mut broken = 0;
    for seed in first.parse::<u64>()?..end.parse()? {
        if let Err(e) = run(seed, 25, trouble) {
            println!("{e}");
            broken += 1;
        }
    }
    println!("{broken} broken");
    Ok(())
}

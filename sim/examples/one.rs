//! one
use weft_sim::life::{Trouble, run};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let t = match a[2].as_str() {
        "full" => Trouble::Full,
        "fail" => Trouble::FailedSyncs,
        _ => Trouble::None,
    };
    println!("{:?}", run(a[1].parse().unwrap(), 25, t));
}

//! `cargo xtask demo`: the order system on Weft, live. Builds, starts Weft and nine services as processes, plays the
//! scenes of `weft_tests::scenes`, and says what happened.
//!
//! Everything runs in a temporary directory on free loopback ports, so two demos never meet. Whatever way the demo ends
//! (done, Ctrl-C, a broken promise, a panic) its processes end with it: each is held by a handle that kills on drop.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args as Options, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use weft_tests::scenes::{self, Seen};
use weft_tests::shop::Flows;
use weft_tests::{Result, Shop, process};

use crate::sh;

mod summary;
mod view;

use summary::Played;
use view::View;

/// Options of the demo.
#[derive(Options)]
pub struct Args {
    /// Orders of the first scene; the other scenes place about 450 more
    #[arg(long, default_value_t = 200)]
    orders: usize,
    /// End when done, with a status that tells whether every promise held; this is the default
    #[arg(long, conflicts_with = "keep")]
    once: bool,
    /// Stay up after the scenes, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Seed of the order mix; the same seed places the same orders [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Which flow drives the orders
    #[arg(long, value_enum, default_value_t = Flow::Both)]
    flow: Flow,
    /// Play only these scenes, in this order
    #[arg(long, value_enum, value_delimiter = ',')]
    scenes: Vec<Scene>,
    /// Optimise the build; the default builds without, which starts minutes sooner and shows the same
    #[arg(long)]
    release: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Flow {
    /// The orchestrated saga
    Saga,
    /// The choreography of events
    Choreography,
    /// Two orders in three by the saga
    Both,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scene {
    /// A visitor browses and signs up
    Front,
    /// A normal day
    Calm,
    /// Cards are declined, stock comes back
    Declined,
    /// The same POST twice
    Replay,
    /// Services fail and lose answers
    Lossy,
    /// Payment is killed for a while
    Outage,
    /// Weft is killed in the middle of 200 sagas
    Crash,
    /// A poison message is dead-lettered and redriven
    Poison,
}

impl Scene {
    const ALL: [Scene; 7] =
        [Scene::Calm, Scene::Declined, Scene::Replay, Scene::Lossy, Scene::Outage, Scene::Crash, Scene::Poison];

    fn title(self) -> &'static str {
        match self {
            Scene::Front => "A visitor",
            Scene::Calm => "A normal day",
            Scene::Declined => "Declined cards",
            Scene::Replay => "The same POST twice",
            Scene::Lossy => "Lost answers",
            Scene::Outage => "Payment dies for a while",
            Scene::Crash => "Weft dies in the middle of 200 sagas",
            Scene::Poison => "A poison message",
        }
    }
}

/// Runs the demo.
pub fn run(args: Args) -> ExitCode {
    if let Err(why) = build(args.release) {
        eprintln!("error: {why}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            eprintln!("error: no runtime: {why}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        tokio::select! {
            done = demo(&args) => done,
            stopped = stop_signal() => stopped.and(Err("stopped".into())),
        }
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Builds Weft and the services, and makes the harness start these.
fn build(release: bool) -> sh::Outcome {
    println!("Building Weft and the nine services ...");
    let profile = if release { "release" } else { "dev" };
    // The same set as `cargo xtask test` builds: with other packages chosen, features of shared dependencies would differ
    // and all of them be built again.
    sh::run("cargo", &["build", "--quiet", "--workspace", "--bins", "--profile", profile])?;
    let dir = if release { "release" } else { "debug" };
    process::use_programs_in(target_dir()?.join(dir));
    Ok(())
}

/// Where cargo puts what it builds, wherever that was set.
fn target_dir() -> std::result::Result<std::path::PathBuf, String> {
    let metadata = cargo_metadata::MetadataCommand::new().no_deps().exec().map_err(|e| e.to_string())?;
    Ok(metadata.target_directory.into_std_path_buf())
}

async fn demo(args: &Args) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    let flows = match args.flow {
        Flow::Saga => Flows::Saga,
        Flow::Choreography => Flows::Choreography,
        Flow::Both => Flows::Both,
    };
    let scenes = if args.scenes.is_empty() { Scene::ALL.to_vec() } else { args.scenes.clone() };
    let dir = tempfile::Builder::new().prefix("weft-demo-").tempdir()?;
    println!("Starting Weft and the nine services in {} ...", dir.path().display());
    let begun = Instant::now();
    let mut shop = Shop::start(dir.path()).await?;
    println!("All up after {:.1} s. Seed {seed}.", begun.elapsed().as_secs_f64());
    println!("{}\n", summary::addresses(&shop));

    let view = View::new(shop.weft.api);
    let mut played = Vec::new();
    for scene in scenes {
        view.scene(scene.title());
        let begun = Instant::now();
        let seen = play(scene, &mut shop, seed, args.orders, flows, &view).await;
        view.ended(&seen, begun.elapsed());
        let broken = seen.is_err();
        played.push(Played { title: scene.title(), calm: scene == Scene::Calm, seen });
        if broken && !shop.weft.process.runs() {
            println!("Weft has ended:\n{}", tail(&shop.weft.process.output()));
            break;
        }
    }
    view.finish();
    let held = summary::print(&shop, &played)?;
    if !held {
        let kept = dir.keep();
        println!("Databases and logs are kept in {}", kept.display());
    }
    if args.keep {
        println!("Up until Ctrl-C. {}", summary::addresses(&shop));
        stop_signal().await?;
    }
    shop.stop().await?;
    Ok(held)
}

async fn play(scene: Scene, shop: &mut Shop, seed: u64, orders: usize, flows: Flows, view: &View) -> Result<Seen> {
    let listener = view.listener();
    match scene {
        Scene::Front => scenes::front(shop, seed, &listener).await,
        Scene::Calm => scenes::calm(shop, seed, orders, flows, &listener).await,
        Scene::Declined => scenes::declined(shop, seed, 20, &listener).await,
        Scene::Replay => scenes::replay(shop, seed, &listener).await,
        Scene::Lossy => scenes::lossy(shop, seed, 60, &listener).await,
        Scene::Outage => scenes::outage(shop, seed, 40, &listener).await,
        Scene::Crash => scenes::crash(shop, seed, 200, &listener).await,
        Scene::Poison => scenes::poison(shop, seed, &listener).await,
    }
}

/// Ctrl-C, or SIGTERM.
async fn stop_signal() -> Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = term.recv() => Ok(()),
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

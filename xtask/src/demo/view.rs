//! What a person sees while the demo runs: a bar of orders, the state of each service, a line for each event.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;
use weft_tests::scenes::{Listener, Note, Seen};
use weft_tests::shop::Outcome;
use weft_tests::{Request, Result, services};

/// The screen. Without a terminal it prints lines only.
pub struct View {
    screen: Screen,
    services: JoinHandle<()>,
}

#[derive(Clone)]
struct Screen {
    all: MultiProgress,
    orders: ProgressBar,
    states: ProgressBar,
    live: bool,
    completed: Arc<AtomicU64>,
    compensated: Arc<AtomicU64>,
}

impl View {
    /// Begins to show; service states are asked of Weft's API.
    pub fn new(api: SocketAddr) -> Self {
        let live = std::io::stdout().is_terminal();
        let target = if live { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let orders = all.add(ProgressBar::new(0));
        let bar = "{bar:40.green} {pos}/{len} orders  {msg}";
        orders.set_style(ProgressStyle::with_template(bar).expect("the template is well formed"));
        let states = all.add(ProgressBar::new_spinner());
        states.set_style(ProgressStyle::with_template("{msg}").expect("the template is well formed"));
        let screen = Screen { all, orders, states, live, completed: Arc::default(), compensated: Arc::default() };
        let services = tokio::spawn(watch(api, screen.clone()));
        Self { screen, services }
    }

    /// What scenes tell goes here.
    pub fn listener(&self) -> Listener {
        let screen = self.screen.clone();
        Listener::new(move |note| screen.hear(note))
    }

    /// A scene begins.
    pub fn scene(&self, title: &str) {
        self.screen.line(&format!("── {title}"));
    }

    /// A scene ended.
    pub fn ended(&self, seen: &Result<Seen>, took: Duration) {
        match seen {
            Ok(seen) => {
                for fact in &seen.facts {
                    self.screen.line(&format!("   ✓ {fact}"));
                }
            }
            Err(why) => self.screen.line(&format!("   ✗ {why}")),
        }
        self.screen.line(&format!("   {:.1} s", took.as_secs_f64()));
    }

    /// Clears the live part.
    pub fn finish(&self) {
        self.services.abort();
        self.screen.orders.finish_and_clear();
        self.screen.states.finish_and_clear();
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.services.abort();
    }
}

impl Screen {
    fn line(&self, line: &str) {
        if self.live {
            // Nobody to tell when the terminal is gone.
            let _ = self.all.println(line);
        } else {
            println!("{line}");
        }
    }

    fn hear(&self, note: Note) {
        match note {
            Note::Say(line) => self.line(&format!("   {line}")),
            Note::Expect(more) => self.orders.inc_length(more as u64),
            Note::Ended(outcome) => {
                let counter = match outcome {
                    Outcome::Completed => &self.completed,
                    Outcome::Compensated => &self.compensated,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                self.orders.inc(1);
                let (done, undone) = (&self.completed, &self.compensated);
                let (done, undone) = (done.load(Ordering::Relaxed), undone.load(Ordering::Relaxed));
                self.orders.set_message(format!("{done} completed, {undone} compensated"));
            }
        }
    }
}

/// Keeps the line of service states true.
async fn watch(api: SocketAddr, screen: Screen) {
    loop {
        let line = match Request::get(api, "/v1/services?limit=100").send().await {
            Ok(answer) if answer.status == 200 => states(&answer.json()),
            _ => "Weft ○".to_owned(),
        };
        screen.states.set_message(line);
        screen.states.tick();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn states(listed: &serde_json::Value) -> String {
    let items = listed["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let state = |name: &&str| {
        let instances = items.iter().find(|s| s["name"] == **name).and_then(|s| s["instances"].as_array());
        let up = instances.is_some_and(|i| i.iter().any(|i| i["health"] != "unhealthy"));
        format!("{name} {}", if up { "●" } else { "○" })
    };
    let states: Vec<String> = services::NAMES.iter().map(state).collect();
    format!("Weft ●  {}", states.join("  "))
}

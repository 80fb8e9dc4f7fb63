//! An idempotent consumer of the choreography: receive, change the own database, then acknowledge and publish in one
//! `POST /v1/commit`.
//!
//! Dying at any point is harmless. Before the local transaction: nothing happened, the lease ends, the event comes
//! again. Between it and the commit: the event comes again, the inbox knows it and answers what to publish. After the
//! commit: all is done. A stale lease means that the event was or will be delivered to somebody else; drop it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rusqlite::Transaction;

use crate::chaos::{Chaos, Fate};
use crate::db::{self, Db};
use crate::event::Event;
use crate::fault::Fault;
use crate::weft::{Delivery, Failure, Weft};

/// The topic the choreography runs on.
pub const TOPIC: &str = "orders";

const BATCH: u32 = 16;
const WAIT: Duration = Duration::from_secs(10);
const GIVE_BACK: Duration = Duration::from_millis(200);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// Tries of one commit; later the lease has ended and the event comes again anyway.
const COMMITS: u32 = 6;

/// What a service does with an event inside its own transaction: changes, and events to tell.
pub type React = fn(&Transaction<'_>, &Event) -> Result<Vec<Event>, Fault>;

/// Everything a consumer works with.
#[derive(Clone)]
pub struct Consumer {
    /// The API.
    pub weft: Weft,
    /// The service's database.
    pub db: Db,
    /// Its switches.
    pub chaos: Chaos,
    /// Name of the subscription.
    pub subscription: &'static str,
    /// The reaction.
    pub react: React,
}

/// Consumes for ever.
pub async fn run(consumer: Consumer) {
    let consumer = Arc::new(consumer);
    let mut retry = FIRST_RETRY;
    loop {
        match consumer.weft.receive(consumer.subscription, BATCH, WAIT).await {
            Ok(deliveries) => {
                retry = FIRST_RETRY;
                join_all(deliveries.into_iter().map(|d| consumer.handle(d))).await;
            }
            Err(why) => {
                tracing::warn!(error = %why, subscription = consumer.subscription, "cannot receive, trying on");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

impl Consumer {
    async fn handle(&self, delivery: Delivery) {
        let (fate, slow) = self.chaos.draw();
        tokio::time::sleep(slow).await;
        let Delivery { lease, event } = delivery;
        let done = match fate {
            Fate::Fails => Err("fault on command".to_owned()),
            // Hanging for ever would stop the loop; what others see is the same: the lease ends.
            Fate::Hangs => return,
            Fate::Spared | Fate::LosesItsAnswer => self.react(event.clone()).await.map_err(|f| f.to_string()),
        };
        match done {
            Ok(_) if fate == Fate::LosesItsAnswer => self.give_back(&lease, "answer lost on command").await,
            Ok(events) => self.commit(&lease, &events).await,
            Err(why) => {
                tracing::warn!(error = why, event = event.id, "reaction failed, giving the event back");
                self.give_back(&lease, &why).await;
            }
        }
    }

    async fn react(&self, event: Event) -> Result<Vec<Event>, Fault> {
        let react = self.react;
        self.db.write(move |tx| db::once(tx, &event, |tx| react(tx, &event))).await
    }

    async fn commit(&self, lease: &str, events: &[Event]) {
        let mut retry = FIRST_RETRY;
        for _ in 0..COMMITS {
            match self.weft.commit(lease, TOPIC, events).await {
                Ok(()) => return,
                Err(why) if why.is_stale() => {
                    tracing::debug!(error = %why, "stale lease, dropped");
                    return;
                }
                Err(why) => {
                    tracing::warn!(error = %why, "commit not acknowledged, trying on");
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    }

    async fn give_back(&self, lease: &str, reason: &str) {
        if let Err(why @ Failure::Refused { .. }) = self.weft.nack(lease, GIVE_BACK, reason).await {
            tracing::warn!(error = %why, "event not given back; its lease will end");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::extract::State;
    use axum::http::{StatusCode, Uri};
    use axum::response::IntoResponse;
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::*;
    use crate::chaos::Settings;

    /// Notes every call to the API and answers the statuses it was given, the last one for ever.
    #[derive(Clone, Default)]
    struct Api(Arc<Mutex<Vec<(String, Value)>>>, Arc<Mutex<Vec<u16>>>);

    impl Api {
        async fn start(answers: &[u16]) -> (Self, Weft) {
            let api = Self(Arc::default(), Arc::new(Mutex::new(answers.to_vec())));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let weft = Weft::new(&format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
            let app = Router::new().fallback(Self::note).with_state(api.clone());
            tokio::spawn(axum::serve(listener, app).into_future());
            (api, weft)
        }

        async fn note(State(api): State<Api>, uri: Uri, Json(body): Json<Value>) -> impl IntoResponse {
            api.0.lock().unwrap().push((uri.path().to_owned(), body));
            let mut answers = api.1.lock().unwrap();
            let status = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
            (StatusCode::from_u16(status).unwrap(), Json(json!({"code": "test"})))
        }

        fn calls(&self) -> Vec<(String, Value)> {
            self.0.lock().unwrap().clone()
        }
    }

    static REACTIONS: AtomicU32 = AtomicU32::new(0);

    fn react(_: &Transaction<'_>, event: &Event) -> Result<Vec<Event>, Fault> {
        match event.ty.as_str() {
            "Bad" => Err(Fault::refused("bad", "no")),
            _ => {
                let n = REACTIONS.fetch_add(1, Ordering::Relaxed);
                Ok(vec![Event::new("test", "Done", &event.subject, json!(n))])
            }
        }
    }

    fn consumer(weft: Weft) -> Consumer {
        Consumer { weft, db: Db::memory(db::INBOX), chaos: Chaos::new(), subscription: "test", react }
    }

    fn delivery(ty: &str) -> Delivery {
        Delivery { lease: "lease-1".into(), event: Event::new("test", ty, "o1", json!({})) }
    }

    #[tokio::test]
    async fn acknowledging_and_publishing_are_one_commit() {
        let (api, weft) = Api::start(&[200]).await;
        consumer(weft).handle(delivery("Good")).await;
        let calls = api.calls();
        assert_eq!(calls.len(), 1);
        let (path, body) = &calls[0];
        assert_eq!((path.as_str(), &body["ack"]), ("/v1/commit", &json!(["lease-1"])));
        assert_eq!(body["publish"][0]["dedup_id"], "o1:Done");
        assert_eq!(body["publish"][0]["event"]["subject"], "o1");
    }

    #[tokio::test]
    async fn a_redelivery_publishes_what_the_first_reaction_told() {
        let (api, weft) = Api::start(&[409, 200]).await;
        let consumer = consumer(weft);
        // The lease was stale: dropped. The event comes again under a new lease.
        consumer.handle(delivery("Good")).await;
        consumer.handle(delivery("Good")).await;
        let calls = api.calls();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].1["publish"][0]["event"]["data"], calls[1].1["publish"][0]["event"]["data"]);
    }

    #[tokio::test]
    async fn a_commit_without_an_answer_is_sent_again() {
        let (api, weft) = Api::start(&[503, 503, 200]).await;
        consumer(weft).handle(delivery("Good")).await;
        assert_eq!(api.calls().iter().filter(|(path, _)| path == "/v1/commit").count(), 3);
    }

    #[tokio::test]
    async fn a_failed_reaction_gives_the_event_back() {
        let (api, weft) = Api::start(&[200]).await;
        consumer(weft).handle(delivery("Bad")).await;
        let calls = api.calls();
        assert_eq!((calls.len(), calls[0].0.as_str()), (1, "/v1/messages/nack"));
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_change_and_no_commit() {
        let (api, weft) = Api::start(&[200]).await;
        let consumer = consumer(weft);
        consumer.chaos.set(Settings { lose: 1.0, ..Settings::default() }).unwrap();
        consumer.handle(delivery("Good")).await;
        assert_eq!(api.calls()[0].0, "/v1/messages/nack");
        consumer.chaos.set(Settings::default()).unwrap();
        let told = consumer.react(delivery("Good").event).await.unwrap();
        consumer.handle(delivery("Good")).await;
        assert_eq!(api.calls()[1].1["publish"][0]["event"]["data"], told[0].data);
    }
}

//! Every bound of the product, named once. Each has an error when it is hit and a test at it.

use std::time::Duration;

/// Bytes in a [`Name`](crate::Name).
pub const NAME_BYTES: usize = 128;

/// Bytes of one message's payload.
pub const MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of one store batch, well below a journal segment.
pub const BATCH_BYTES: usize = 16 << 20;
/// Operations in one `POST /v1/commit`.
pub const COMMIT_OPS: usize = 1_000;
/// Bytes of a JSON body the API accepts.
pub const API_BODY_BYTES: usize = 16 << 20;
/// Messages handed out by one receive call.
pub const RECEIVE_MESSAGES: usize = 1_000;
/// Longest long poll of a receive or watch call.
pub const RECEIVE_WAIT: Duration = Duration::from_secs(60);
/// CloudEvents extension attributes on one envelope.
pub const ENVELOPE_EXTENSIONS: usize = 64;

/// Messages of one stream held ready for one subscription; the rest stays in the store until there is room.
pub const DELIVERY_WINDOW: usize = 4_096;
/// Messages of one stream leased, or being settled, at once; delivery pauses above.
pub const DELIVERIES_IN_FLIGHT: usize = 16_384;
/// Delayed messages of one stream known at once; loading pauses above, and a delayed publish is refused as overloaded.
pub const DELAYED_MESSAGES: usize = 100_000;
/// Payload bytes held ready in memory by all channels together; above, payloads are read when they are delivered.
pub const READY_BYTES: usize = 64 << 20;
/// Dedup ids remembered by all channels together; above, a publish with a new id is refused as overloaded.
pub const DEDUP_IDS: usize = 500_000;
/// Calls waiting for the broker's sequencing task.
pub const BROKER_CALLS: usize = 8_192;
/// How long a call waits for a place among them before it is refused as overloaded.
pub const BROKER_CALL_WAIT: Duration = Duration::from_secs(1);
/// Store batches of the broker on their way to disk at once.
pub const BROKER_COMMITS: usize = 1_024;
/// Receive calls waiting on one queue or subscription.
pub const RECEIVERS: usize = 4_096;
/// Queues and topics in all, those made by first use included.
pub const CHANNELS: usize = 16_384;
/// Entries of one page of a listing of channels, messages or events.
pub const LIST: usize = 1_000;
/// Partitions of one topic.
pub const TOPIC_PARTITIONS: u32 = 256;
/// Calls at once of one push subscription.
pub const PUSH_CONCURRENCY: u32 = 1_024;
/// Longest lease of a delivery.
pub const LEASE: Duration = Duration::from_secs(12 * 3600);
/// Longest delay of a message.
pub const DELAY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Bytes of request head the gateway reads before answering 431.
pub const HEADER_BYTES: usize = 64 << 10;
/// Header fields of one request.
pub const HEADER_COUNT: usize = 100;
/// Time a client has to send a request head.
pub const HEADER_READ: Duration = Duration::from_secs(30);
/// Time a client has for a TLS handshake.
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// TLS handshakes under way at once on one listener; more wait, within their time.
pub const TLS_HANDSHAKES: usize = 1_024;
/// Sessions remembered per listener for TLS 1.2 clients that take no tickets.
pub const TLS_SESSIONS: usize = 1_024;
/// How long an upgraded connection (WebSocket) may be silent on a route that says nothing of it.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(300);
/// How long an upgraded connection may be silent after one side said that it ends.
pub const TUNNEL_HALF_CLOSED: Duration = Duration::from_secs(10);
/// How long upgraded connections go on after SIGTERM.
pub const TUNNEL_DRAIN: Duration = Duration::from_secs(10);
/// Time until both sides of an upgrade are there, after the 101.
pub const TUNNEL_OPEN: Duration = Duration::from_secs(10);
/// Bytes held for each direction of an upgraded connection.
pub const TUNNEL_BUFFER: usize = 16 << 10;
/// Bytes of a request's body that a mirror copies; a longer request is not mirrored.
pub const MIRROR_BODY_BYTES: usize = 1 << 20;
/// Copies of one route under way at once; more are not made.
pub const MIRRORS: u32 = 64;
/// Time for one copy.
pub const MIRROR_TIME: Duration = Duration::from_secs(10);
/// How often a queue that a route depends on is looked at, and how long that may take.
pub const LAG_LOOK: Duration = Duration::from_secs(1);
/// Lines waiting for the access log's writer; more are dropped.
pub const ACCESS_LINES: usize = 8_192;
/// Most that a route may ask to collect of a request (`buffer`).
pub const BUFFERED_BODY_BYTES: usize = 64 << 20;
/// Services that one route is split over.
pub const SHARES: usize = 64;
/// Bytes of a body that a policy asked to collect (idempotency, saga input).
pub const COLLECTED_BODY_BYTES: usize = 1 << 20;
/// Open connections per listener.
pub const CONNECTIONS: usize = 16_384;
/// HTTP/2 streams a client may hold open on one connection.
pub const H2_STREAMS: u32 = 256;
/// HTTP/2 resets tolerated before the connection is closed (CVE-2023-44487).
pub const H2_PENDING_RESETS: usize = 64;
/// HTTP/2 receive window of one stream.
pub const H2_STREAM_WINDOW: u32 = 256 << 10;
/// HTTP/2 receive window of one connection.
pub const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes buffered for sending on one HTTP/2 stream.
pub const H2_SEND_BUFFER: usize = 64 << 10;
/// How often a silent HTTP/2 client is asked whether it lives.
pub const H2_PING: Duration = Duration::from_secs(60);
/// How long it has to answer.
pub const H2_PING_ANSWER: Duration = Duration::from_secs(20);
/// Baggage bytes passed on (W3C Baggage 3.3.2 asks for at least 8192).
pub const BAGGAGE_BYTES: usize = 8192;
/// Bytes of an Idempotency-Key.
pub const IDEMPOTENCY_KEY_BYTES: usize = 255;

/// Bytes of a token; longer ones are refused unread.
pub const TOKEN_BYTES: usize = 8 << 10;
/// Credentials that were checked and are remembered, per provider.
pub const CHECKED_CREDENTIALS: usize = 16_384;
/// Keys in one key set.
pub const JWKS_KEYS: usize = 256;
/// Keys that are tried for a token that names none.
pub const JWK_TRIES: usize = 8;
/// Bytes of a key set or discovery document.
pub const JWKS_BYTES: usize = 1 << 20;
/// Bounds put on how long a key set is fresh, whatever its issuer's `Cache-Control` says.
pub const JWKS_FRESH: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
/// Shortest time between two fetches of a key set that tokens with unknown keys ask for.
pub const JWKS_REFETCH: Duration = Duration::from_secs(5);
/// Time for one fetch of a key set, discovery included; also how long a request waits for it.
pub const JWKS_FETCH: Duration = Duration::from_secs(5);
/// Wait after a failed fetch of a key set: doubled each time, up to the second.
pub const JWKS_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// API keys in one store.
pub const API_KEYS: usize = 100_000;
/// Passwords being checked at once; each takes a core and its hash's memory.
pub const PASSWORD_CHECKS: usize = 2;
/// How long a password waits for its turn to be checked.
pub const PASSWORD_WAIT: Duration = Duration::from_secs(2);
/// Wrong passwords that a client's address may send at once to one provider; those being checked count as wrong.
pub const WRONG_PASSWORDS: u32 = 20;
/// After so long one more.
pub const WRONG_PASSWORD_EVERY: Duration = Duration::from_secs(6);

/// Idle connections kept per upstream instance and core.
pub const UPSTREAM_IDLE: usize = 400;
/// How long an idle upstream connection is kept.
pub const UPSTREAM_IDLE_FOR: Duration = Duration::from_secs(60);
/// Time to connect to an upstream.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 connections per upstream instance and core.
pub const UPSTREAM_H2_CONNECTIONS: usize = 4;
/// How long an instance that could not be connected to is passed over: doubled each time, up to the second.
pub const EJECTION: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
/// Bounds put on the TTL of a DNS record.
pub const DNS_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How long until a name that did not resolve is asked for again.
pub const DNS_RETRY: Duration = Duration::from_secs(2);
/// Services known at once, from the file and from registrations.
pub const SERVICES: usize = 10_000;
/// Registered instances of one service.
pub const INSTANCES: usize = 4_096;
/// Largest weight of an instance.
pub const WEIGHT: u32 = 10_000;
/// Points on the ring of one service that hashes; with more instances than it holds at full number, each has fewer.
pub const RING_POINTS: usize = 65_536;
/// Bounds put on the TTL of a registration.
pub const REGISTRATION_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Bytes of one registration's metadata, keys and values together.
pub const METADATA_BYTES: usize = 16 << 10;

/// Consumers of one version of one route that are counted apart.
pub const VERSION_CONSUMERS: usize = 1_000;
/// Versions of one route.
pub const VERSIONS: usize = 64;

/// Calls in a breaker's window.
pub const BREAKER_WINDOW: u32 = 100_000;
/// A half-open breaker's trial call that has not answered in this time counts as failed.
pub const BREAKER_TRIAL: Duration = Duration::from_secs(60);
/// Attempts that may go out beside the first one of a round, when a policy hedges.
pub const HEDGES: u32 = 8;
/// Longest `Retry-After` that is waited for; when more is asked, the answer is passed on.
pub const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Keys that one rate limit counts apart.
pub const RATE_KEYS: usize = 65_536;
/// Rate limits, and quotas, on one thing.
pub const RATES: usize = 8;
/// Callers that all quotas of a process count apart at once.
pub const QUOTA_KEYS: usize = 65_536;
/// How often what quotas counted is written to the store.
pub const QUOTA_FLUSH: Duration = Duration::from_secs(1);

/// Steps a saga definition may hold.
pub const SAGA_STEPS: usize = 1_000;
/// Bytes of one saga instance's state.
pub const SAGA_STATE_BYTES: usize = 4 << 20;
/// Saga steps in flight at once in one process.
pub const SAGA_STEPS_IN_FLIGHT: usize = 1_024;
/// Unfinished saga instances in one process; a start above is refused as overloaded.
pub const SAGA_INSTANCES: usize = 65_536;
/// Time for the forward path of a saga that names none.
pub const SAGA_DEADLINE: Duration = Duration::from_secs(3_600);
/// Rounds a failing compensation is tried, each with its policy's retries, before the saga is parked.
pub const SAGA_COMPENSATION_ROUNDS: u32 = 60;
/// Time for one round of a compensation whose policy has no deadline.
pub const SAGA_CALL: Duration = Duration::from_secs(60);
/// .proto files taken from one service's reflection.
pub const REFLECTED_FILES: usize = 1_000;
/// Bytes of a saga's start key.
pub const SAGA_KEY_BYTES: usize = 512;
/// Instances in one page of a saga listing.
pub const SAGA_LIST: usize = 500;
/// How long ended sagas, and the keys that started them, are kept.
pub const SAGA_KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Spans kept in the trace ring.
pub const TRACE_SPANS: usize = 100_000;
/// While the ring holds at least this long at the present rate, every trace is kept; above that rate a share of them.
pub const TRACE_HOLD: Duration = Duration::from_secs(10);
/// A span that took this long is kept whatever the rate.
pub const TRACE_SLOW: Duration = Duration::from_secs(1);
/// Attributes on one span.
pub const SPAN_ATTRIBUTES: usize = 32;
/// Bytes of a span's name and of each text in its attributes; longer ones are cut.
pub const SPAN_TEXT_BYTES: usize = 1_024;
/// Traces that one list answers with.
pub const TRACE_LIST: usize = 1_000;
/// Metric series (a name with one set of labels); more are counted and left out.
pub const METRIC_SERIES: usize = 10_000;
/// Bytes of one configuration file.
pub const CONFIG_BYTES: usize = 4 << 20;
/// How long SIGTERM waits for work in flight.
pub const DRAIN: Duration = Duration::from_secs(30);

/// Batches waiting for the journal's writer; beyond it commits answer overloaded.
pub const STORE_QUEUE_BATCHES: usize = 65_536;
/// Bytes of batches waiting for the journal's writer.
pub const STORE_QUEUE_BYTES: usize = 64 << 20;
/// Bytes of one commit group, unless a single batch is larger.
pub const GROUP_BYTES: usize = 4 << 20;
/// Bytes of one journal segment.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// How long a reader holds a journal segment back from being recycled.
pub const SEGMENT_PIN: Duration = Duration::from_secs(10);
/// Recently changed keys the journal's writer remembers to check preconditions without reading disk.
pub const KEY_WINDOW: usize = 131_072;
/// How often a batch whose precondition was read too long ago is read and submitted again.
pub const COMMIT_RESUBMITS: usize = 8;
/// Bytes of a stream's name.
pub const STREAM_NAME_BYTES: usize = 512;

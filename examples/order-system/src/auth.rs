//! The auth service: accounts with random secrets, and opaque tokens that end after an hour.
//!
//! Secrets and tokens are 256 random bits, so a plain SHA-256 of them is safe to store: there is nothing to guess.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use rusqlite::{OptionalExtension, Transaction, params};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::db::Db;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS accounts(user TEXT PRIMARY KEY, secret TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tokens(token TEXT PRIMARY KEY, user TEXT NOT NULL, ends INTEGER NOT NULL) STRICT;";

const TOKEN_SECONDS: i64 = 3600;

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("auth", options, SCHEMA)?;
    let routes = Router::new()
        .route("/register", post(register))
        .route("/token", post(token))
        .route("/introspect", post(introspect))
        .with_state(host.db.clone());
    host.serve(Speaks::Http, routes).await
}

#[derive(Deserialize)]
struct Account {
    user: String,
}

#[derive(Deserialize)]
struct Credentials {
    user: String,
    secret: String,
}

#[derive(Deserialize)]
struct Presented {
    token: String,
}

async fn register(State(db): State<Db>, Json(a): Json<Account>) -> Result<(StatusCode, Json<Value>), Fault> {
    let secret = random();
    let answer = json!({"user": a.user, "secret": secret});
    db.write(move |tx| open_account(tx, &a.user, &secret)).await?;
    Ok((StatusCode::CREATED, Json(answer)))
}

async fn token(State(db): State<Db>, Json(c): Json<Credentials>) -> Result<Json<Value>, Fault> {
    let token = random();
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECONDS});
    db.write(move |tx| issue(tx, &c.user, &c.secret, &token, now())).await?;
    Ok(Json(answer))
}

/// RFC 7662 in JSON.
async fn introspect(State(db): State<Db>, Json(p): Json<Presented>) -> Result<Json<Value>, Fault> {
    Ok(Json(match db.write(move |tx| check(tx, &p.token, now())).await? {
        Some((user, ends)) => json!({"active": true, "sub": user, "exp": ends}),
        None => json!({"active": false}),
    }))
}

fn open_account(tx: &Transaction<'_>, user: &str, secret: &str) -> Result<(), Fault> {
    if user.is_empty() {
        return Err(Fault::Invalid("'user' is empty".into()));
    }
    let made =
        tx.execute("INSERT OR IGNORE INTO accounts(user, secret) VALUES (?1, ?2)", params![user, digest(secret)])?;
    if made == 0 { Err(Fault::refused("user-taken", format!("there is an account '{user}'"))) } else { Ok(()) }
}

fn issue(tx: &Transaction<'_>, user: &str, secret: &str, token: &str, now: i64) -> Result<(), Fault> {
    let stored: Option<String> =
        tx.query_row("SELECT secret FROM accounts WHERE user = ?1", [user], |r| r.get(0)).optional()?;
    if stored != Some(digest(secret)) {
        return Err(Fault::Unauthorized("user and secret do not match"));
    }
    tx.execute("DELETE FROM tokens WHERE ends <= ?1", [now])?;
    tx.execute(
        "INSERT INTO tokens(token, user, ends) VALUES (?1, ?2, ?3)",
        params![digest(token), user, now + TOKEN_SECONDS],
    )?;
    Ok(())
}

/// Whose a token is and when it ends, while it holds.
fn check(tx: &Transaction<'_>, token: &str, now: i64) -> Result<Option<(String, i64)>, Fault> {
    let mut row = tx.prepare_cached("SELECT user, ends FROM tokens WHERE token = ?1 AND ends > ?2")?;
    Ok(row.query_row(params![digest(token), now], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
}

fn random() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

fn digest(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_for_an_hour_and_only_for_the_right_secret() {
        let db = Db::memory(SCHEMA);
        let (secret, token) = (random(), random());
        db.write_now(|tx| open_account(tx, "ann", &secret)).unwrap();
        assert!(matches!(db.write_now(|tx| issue(tx, "ann", &random(), &token, 100)), Err(Fault::Unauthorized(_))));
        db.write_now(|tx| issue(tx, "ann", &secret, &token, 100)).unwrap();
        assert_eq!(db.write_now(|tx| check(tx, &token, 3_699)).unwrap(), Some(("ann".into(), 3_700)));
        assert_eq!(db.write_now(|tx| check(tx, &token, 3_700)).unwrap(), None);
        assert_eq!(db.write_now(|tx| check(tx, &random(), 100)).unwrap(), None);
    }

    #[test]
    fn an_account_is_opened_once() {
        let db = Db::memory(SCHEMA);
        db.write_now(|tx| open_account(tx, "ann", &random())).unwrap();
        assert!(db.write_now(|tx| open_account(tx, "ann", &random())).is_err());
    }

    #[test]
    fn secrets_are_not_stored_in_the_clear() {
        let db = Db::memory(SCHEMA);
        let secret = random();
        db.write_now(|tx| open_account(tx, "ann", &secret)).unwrap();
        let stored: String =
            db.write_now(|tx| Ok(tx.query_row("SELECT secret FROM accounts", [], |r| r.get(0))?)).unwrap();
        assert_ne!(stored, secret);
    }
}

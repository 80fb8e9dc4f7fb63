//! The user service: customers, over REST.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::db::Db;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS users(
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    email TEXT NOT NULL) STRICT;";

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("user", options, SCHEMA)?;
    let routes = Router::new()
        .route("/users", get(list).post(create))
        .route("/users/", get(list).post(create))
        .route("/users/{id}", get(show))
        .with_state(host.db.clone());
    host.serve(Speaks::Http, routes).await
}

#[derive(Clone, Deserialize)]
struct User {
    id: String,
    name: String,
    email: String,
}

async fn create(State(db): State<Db>, Json(user): Json<User>) -> Result<(StatusCode, Json<Value>), Fault> {
    Ok((StatusCode::CREATED, Json(db.write(move |tx| insert(tx, &user)).await?)))
}

async fn show(State(db): State<Db>, Path(id): Path<String>) -> Result<Json<Value>, Fault> {
    let user = db.write(move |tx| find(tx, &id)?.ok_or_else(|| Fault::NotFound(format!("user '{id}'"))));
    Ok(Json(user.await?))
}

async fn list(State(db): State<Db>) -> Result<Json<Value>, Fault> {
    let items = db.write(|tx| {
        let mut rows = tx.prepare("SELECT id, name, email FROM users ORDER BY id LIMIT 500")?;
        Ok(rows.query_map([], read)?.collect::<Result<Vec<_>, _>>()?)
    });
    Ok(Json(json!({"items": items.await?, "next": null})))
}

/// Makes a user; the same again is the same user, another under the same id is refused.
fn insert(tx: &Transaction<'_>, user: &User) -> Result<Value, Fault> {
    let User { id, name, email } = user;
    if id.is_empty() || !email.contains('@') {
        return Err(Fault::Invalid("a user has an 'id', a 'name' and an 'email' with an @".into()));
    }
    let new = json!({"id": id, "name": name, "email": email});
    match find(tx, id)? {
        Some(known) if known == new => Ok(known),
        Some(_) => Err(Fault::refused("id-taken", format!("there is another user '{id}'"))),
        None => {
            tx.execute("INSERT INTO users(id, name, email) VALUES (?1, ?2, ?3)", params![id, name, email])?;
            Ok(new)
        }
    }
}

fn find(tx: &Transaction<'_>, id: &str) -> Result<Option<Value>, Fault> {
    Ok(tx.query_row("SELECT id, name, email FROM users WHERE id = ?1", [id], read).optional()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Value> {
    let (id, name, email): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(json!({"id": id, "name": name, "email": email}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_user_twice_is_one_user_and_another_is_refused() {
        let db = Db::memory(SCHEMA);
        let ann = User { id: "ann".into(), name: "Ann".into(), email: "ann@shop.example".into() };
        for _ in 0..2 {
            db.write_now(|tx| insert(tx, &ann)).unwrap();
        }
        let other = User { name: "Anna".into(), ..ann.clone() };
        assert!(matches!(db.write_now(|tx| insert(tx, &other)), Err(Fault::Refused { code: "id-taken", .. })));
        assert!(db.write_now(|tx| insert(tx, &User { email: "ann".into(), ..ann })).is_err());
    }
}

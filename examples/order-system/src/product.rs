//! The product service: the catalogue, over REST.

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde_json::{Value, json};

use crate::catalogue;
use crate::db::Db;
use crate::fault::Fault;
use crate::host::{Failure, Host, Options, Speaks};

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS products(
    sku TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    price_cents INTEGER NOT NULL CHECK (price_cents > 0)) STRICT;";

/// Runs the service.
pub async fn serve(options: Options) -> Result<(), Failure> {
    let host = Host::new("product", options, SCHEMA)?;
    host.db.write(fill).await?;
    let routes = Router::new()
        .route("/products", get(list))
        .route("/products/", get(list))
        .route("/products/{sku}", get(show))
        .with_state(host.db.clone());
    host.serve(Speaks::Http, routes).await
}

async fn list(State(db): State<Db>) -> Result<Json<Value>, Fault> {
    let items = db.write(|tx| {
        let mut rows = tx.prepare("SELECT sku, name, price_cents FROM products ORDER BY sku")?;
        Ok(rows.query_map([], read)?.collect::<Result<Vec<_>, _>>()?)
    });
    Ok(Json(json!({"items": items.await?, "next": null})))
}

async fn show(State(db): State<Db>, Path(sku): Path<String>) -> Result<Json<Value>, Fault> {
    Ok(Json(db.write(move |tx| find(tx, &sku)).await?))
}

fn fill(tx: &Transaction<'_>) -> Result<(), Fault> {
    for p in &catalogue::PRODUCTS {
        let row = params![p.sku, p.name, p.price_cents];
        tx.execute("INSERT OR IGNORE INTO products(sku, name, price_cents) VALUES (?1, ?2, ?3)", row)?;
    }
    Ok(())
}

fn find(tx: &Transaction<'_>, sku: &str) -> Result<Value, Fault> {
    tx.query_row("SELECT sku, name, price_cents FROM products WHERE sku = ?1", [sku], read)
        .optional()?
        .ok_or_else(|| Fault::NotFound(format!("product '{sku}'")))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Value> {
    let (sku, name, price): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    Ok(json!({"sku": sku, "name": name, "price_cents": price}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_filled_once_and_read_by_sku() {
        let db = Db::memory(SCHEMA);
        for _ in 0..2 {
            db.write_now(fill).unwrap();
        }
        assert_eq!(db.write_now(|tx| find(tx, "cup-blue")).unwrap()["price_cents"], json!(1200));
        assert!(matches!(db.write_now(|tx| find(tx, "unicorn")), Err(Fault::NotFound(_))));
    }
}

//! What lies plainly behind the gateway: catalogue, customers, tokens, counts.

use serde_json::{Value, json};

use super::{Listener, Seen};
use crate::shop::Shop;
use crate::{Request, Result};

/// Walks through the shop's front: browses, signs up, gets a token, looks at the counts.
pub async fn front(shop: &mut Shop, seed: u64, listener: &Listener) -> Result<Seen> {
    let mut seen = Seen::default();
    let gateway = shop.weft.gateway;
    let post = async |path: &str, body: &Value, status: u16| -> Result<Value> {
        Ok(Request::post(gateway, path).json(body).send().await?.expect(status)?.json())
    };
    let products = Request::get(gateway, "/v1/products/").send().await?.expect(200)?.json();
    let products = products["items"].as_array().map_or(0, Vec::len);
    let cup = Request::get(gateway, "/v1/products/cup-blue").send().await?.expect(200)?.json();
    Request::get(gateway, "/v1/products/unicorn").send().await?.expect(404)?;

    let user = format!("visitor-{seed}");
    post("/v1/users/", &json!({"id": user, "name": "Vi Sitor", "email": "vi@shop.example"}), 201).await?;
    let secret = post("/v1/auth/register", &json!({"user": user}), 201).await?["secret"].take();
    post("/v1/auth/token", &json!({"user": user, "secret": "guess"}), 401).await?;
    let token = post("/v1/auth/token", &json!({"user": user, "secret": secret}), 200).await?["access_token"].take();
    let who = post("/v1/auth/introspect", &json!({"token": token}), 200).await?;
    if who["active"] != true || who["sub"] != *user {
        return Err(format!("the token of {user} says {who}").into());
    }
    Request::get(gateway, "/v1/analytics/counts").send().await?.expect(200)?;
    listener.say(format!("{products} products listed, the blue cup costs {} cents", cup["price_cents"]));
    seen.fact("products, users, tokens and counts answer through the gateway, errors as each service means them");
    Ok(seen)
}

//! `weft keys`

use std::io::Read as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use weft_policy::auth::password;

use super::client::{Client, Error, path, pretty};
use super::table::{Table, cell, clean, items};
use super::{Answer, Remote};

#[derive(Args)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Subcommand)]
enum Action {
    /// Lists keys, without their secrets
    List,
    /// Makes a key and prints it, once
    Create {
        /// Whose it is: the principal of requests that carry it
        owner: String,
        /// What it may do; may be given several times
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// How long it lives, like 90d; for ever without it
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
    },
    /// Gives a key a new secret and prints it; the old one goes on for a while
    Rotate {
        /// Its id
        id: String,
        /// How long both are good
        #[arg(long, value_name = "DURATION", default_value = "24h")]
        overlap: String,
    },
    /// Switches a key off
    Disable {
        /// Its id
        id: String,
    },
    /// Switches a key on again
    Enable {
        /// Its id
        id: String,
    },
    /// Removes a key for good
    Revoke {
        /// Its id
        id: String,
    },
    /// Prints the Argon2 hash of a password on standard input, for `basic` in weft.yaml; asks no API
    Password,
}

pub(super) async fn run(args: KeysArgs) -> Answer {
    let client = Client::new(&args.remote)?;
    let action = args.action.unwrap_or(Action::List);
    let at = |id: &str, what: &str| path(&["v1", "keys", id, what]);
    let none = Duration::ZERO;
    let (answer, text) = match action {
        Action::List => {
            let answer = client.all("/v1/keys").await?;
            let text = list(&answer);
            (answer, text)
        }
        Action::Create { owner, scopes, expires } => {
            let body = json!({"owner": owner, "scopes": scopes, "expires_in": expires});
            made(client.post("/v1/keys", &body, none).await?, "It is shown this once; Weft keeps a hash of it.")
        }
        Action::Rotate { id, overlap } => {
            let answer = client.post(&at(&id, "rotate"), &json!({"overlap": overlap}), none).await?;
            made(answer, &format!("It is shown this once. The one before is good for {overlap} more."))
        }
        Action::Disable { id } => {
            let answer = client.call(Method::POST, &at(&id, "disable"), None, &[], none).await?;
            (answer, format!("key {} is disabled\n", clean(&id)))
        }
        Action::Enable { id } => {
            let answer = client.call(Method::POST, &at(&id, "enable"), None, &[], none).await?;
            (answer, format!("key {} is enabled\n", clean(&id)))
        }
        Action::Revoke { id } => {
            let answer = client.call(Method::DELETE, &path(&["v1", "keys", &id]), None, &[], none).await?;
            (answer, format!("key {} is gone\n", clean(&id)))
        }
        Action::Password => return hash(),
    };
    Ok(if client.json { pretty(&answer) } else { text })
}

/// The key alone on the first line, so that scripts can take it.
fn made(answer: Value, note: &str) -> (Value, String) {
    let scopes: Vec<String> = items(&answer, "scopes").iter().filter_map(|s| s.as_str().map(clean)).collect();
    let scopes = if scopes.is_empty() { "no scopes".to_owned() } else { format!("scopes {}", scopes.join(" ")) };
    let expires = match answer["expires"].as_str() {
        Some(t) => format!("expires {}", clean(t)),
        None => "does not expire".to_owned(),
    };
    let (key, id, owner) = (cell(&answer, "key"), cell(&answer, "id"), cell(&answer, "owner"));
    let text = format!("{}\n  id {} of {}, {scopes}, {expires}\n  {note}\n", clean(&key), clean(&id), clean(&owner));
    (answer, text)
}

fn list(answer: &Value) -> String {
    let mut table = Table::new(["id", "owner", "scopes", "state", "created", "expires", "secrets"]);
    for k in items(answer, "items") {
        let scopes: Vec<&str> = items(k, "scopes").iter().filter_map(Value::as_str).collect();
        let state = if k["disabled"] == json!(true) { "disabled" } else { "enabled" };
        let secrets = items(k, "secrets").len().to_string();
        let scopes = scopes.join(" ");
        let (created, expires) = (cell(k, "created"), cell(k, "expires"));
        table.row([cell(k, "id"), cell(k, "owner"), scopes, state.into(), created, expires, secrets]);
    }
    table.render("no keys: make one with `weft keys create OWNER`")
}

fn hash() -> Answer {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(4_096).read_to_string(&mut text);
    read.map_err(|e| Error::Input(format!("the password cannot be read: {e}")))?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Error::Input("the password on standard input is empty".into()));
    }
    password::hash(password).map(|h| h + "\n").map_err(Error::Input)
}

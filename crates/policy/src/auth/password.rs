//! Passwords of users that the configuration names, as Argon2 hashes in PHC form (RFC 9106).
//!
//! Checking one takes tens of milliseconds and megabytes, on purpose: whoever calls this bounds how many run at once.

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Argon2, Params};

use super::Denied;

/// Most memory that a hash in the configuration may ask for, in KiB.
pub const MEMORY_KIB: u32 = 256 << 10;

/// Checks that a text is a hash that can be checked here.
pub fn parse(hash: &str) -> Result<(), String> {
    let h = PasswordHash::new(hash).map_err(|e| format!("not a password hash in PHC form ({e})"))?;
    if !["argon2id", "argon2i", "argon2d"].contains(&h.algorithm.as_str()) {
        return Err(format!("the algorithm '{}' is not one of argon2id, argon2i, argon2d", h.algorithm));
    }
    if h.hash.is_none() || h.salt.is_none() {
        return Err("a password hash without its salt or its hash".into());
    }
    let params = Params::try_from(&h).map_err(|e| format!("parameters that Argon2 does not take ({e})"))?;
    if params.m_cost() > MEMORY_KIB {
        return Err(format!("it asks for {} KiB of memory, at most {MEMORY_KIB} are given", params.m_cost()));
    }
    Ok(())
}

/// A hash of a password with the crate's recommended parameters (Argon2id, 19 MiB, 2 passes) and a fresh salt.
pub fn hash(password: &str) -> Result<String, String> {
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(|e| e.to_string())?;
    Argon2::default().hash_password(password.as_bytes(), &salt).map(|h| h.to_string()).map_err(|e| e.to_string())
}

/// Checks a password. An unknown user (`None`) takes as long as a known one with `like`'s parameters.
pub fn check(hash: Option<&str>, like: &str, password: &[u8]) -> Result<(), Denied> {
    let parsed = PasswordHash::new(hash.unwrap_or(like)).map_err(|_| Denied::Password)?;
    let fits = Argon2::default().verify_password(password, &parsed).is_ok();
    if fits && hash.is_some() { Ok(()) } else { Err(Denied::Password) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Argon2id with the least that it takes, so that tests are quick.
    const SECRET: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$";

    fn quick(password: &str) -> String {
        let argon =
            Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, Params::new(8, 1, 1, None).unwrap());
        argon.hash_password(password.as_bytes(), &SaltString::encode_b64(b"somesalt").unwrap()).unwrap().to_string()
    }

    #[test]
    fn a_password_is_good_for_its_user_alone() {
        let (ann, bob) = (quick("secret"), quick("other"));
        assert!(ann.starts_with(SECRET));
        assert_eq!(check(Some(&ann), &ann, b"secret"), Ok(()));
        assert_eq!(check(Some(&bob), &ann, b"secret"), Err(Denied::Password));
        assert_eq!(check(None, &ann, b"secret"), Err(Denied::Password), "an unknown user with a right password");
    }

    #[test]
    fn a_hash_that_cannot_be_checked_or_costs_too_much_is_refused() {
        assert_eq!(parse(&quick("x")), Ok(()));
        assert_eq!(parse(&hash("x").unwrap()), Ok(()));
        for bad in ["secret", "$2b$12$abcdefghijklmnopqrstuu", "$argon2id$v=19$m=8,t=1,p=1", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let greedy = quick("x").replace("m=8", "m=4194304");
        assert!(parse(&greedy).unwrap_err().contains("memory"), "{:?}", parse(&greedy));
    }
}

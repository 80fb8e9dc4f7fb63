use super::*;

// RFC 7515 A.2: the key and the token it signs.
const RSA: &str = r#"{"keys":[{"kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}]}"#;
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
// RFC 7515 A.3.
const EC: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
const EC_TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
// RFC 8037 A.2 and A.4.
const ED: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
const ED_TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
// RFC 7515 A.5: an unsecured JWS.
const NONE_TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";

fn keys(json: &str) -> Keys {
    Keys::parse(json.as_bytes()).unwrap()
}

fn check(token: &str, keys: &Keys) -> Result<Algorithm, Denied> {
    let jws = Jws::parse(token)?;
    jws.verify(keys).map(|()| jws.algorithm)
}

#[test]
fn the_examples_of_rfc_7515_and_rfc_8037_verify() {
    assert_eq!(check(RSA_TOKEN, &keys(RSA)), Ok(Algorithm::Rs256));
    assert_eq!(check(EC_TOKEN, &keys(EC)), Ok(Algorithm::Es256));
    assert_eq!(check(ED_TOKEN, &keys(ED)), Ok(Algorithm::EdDsa));
    assert_eq!(Jws::parse(ED_TOKEN).unwrap().payload, b"Example of Ed25519 signing");
}

#[test]
fn one_changed_character_breaks_a_token() {
    for (token, keys) in [(RSA_TOKEN, keys(RSA)), (EC_TOKEN, keys(EC)), (ED_TOKEN, keys(ED))] {
        for at in (0..token.len()).step_by(7) {
            let mut forged = token.as_bytes().to_vec();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert!(check(std::str::from_utf8(&forged).unwrap(), &keys).is_err(), "at {at}");
        }
    }
}

#[test]
fn none_and_hmac_have_no_algorithm_whatever_the_letters() {
    assert_eq!(check(NONE_TOKEN, &keys(RSA)), Err(Denied::Algorithm));
    for alg in ["none", "None", "NONE", "HS256", "HS384", "HS512", "ES512", "RS1", "rs256", ""] {
        assert_eq!(Algorithm::of(alg), None, "{alg}");
    }
    // The classic confusion: an HMAC of the token with the public key's bytes as the secret.
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let body = RSA_TOKEN.split('.').nth(1).unwrap();
    let mac = ring::hmac::sign(
        &ring::hmac::Key::new(ring::hmac::HMAC_SHA256, RSA.as_bytes()),
        format!("{head}.{body}").as_bytes(),
    );
    let forged = format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(mac));
    assert_eq!(check(&forged, &keys(RSA)), Err(Denied::Algorithm));
}

#[test]
fn a_key_checks_only_its_own_family_and_the_algorithm_it_names() {
    assert_eq!(check(RSA_TOKEN, &keys(EC)), Err(Denied::UnknownKey));
    assert_eq!(check(EC_TOKEN, &keys(ED)), Err(Denied::UnknownKey));
    let other = RSA.replace("\"e\"", "\"alg\":\"PS256\",\"e\"");
    assert_eq!(check(RSA_TOKEN, &keys(&other)), Err(Denied::UnknownKey));
    let same = RSA.replace("\"e\"", "\"alg\":\"RS256\",\"use\":\"sig\",\"key_ops\":[\"verify\"],\"e\"");
    assert_eq!(check(RSA_TOKEN, &keys(&same)), Ok(Algorithm::Rs256));
}

#[test]
fn keys_for_other_purposes_of_other_kinds_or_too_short_are_passed_over() {
    for (from, to) in [
        ("\"e\"", "\"use\":\"enc\",\"e\""),
        ("\"e\"", "\"key_ops\":[\"encrypt\"],\"e\""),
        ("\"e\"", "\"alg\":\"ES256\",\"e\""),
        ("\"e\"", "\"alg\":\"RSA-OAEP\",\"e\""),
        ("\"kty\":\"RSA\"", "\"kty\":\"oct\",\"k\":\"c2VjcmV0\""),
    ] {
        assert!(Keys::parse(RSA.replace(from, to).as_bytes()).is_err(), "{to}");
    }
    let short = r#"{"keys":[{"kty":"RSA","e":"AQAB","n":"3ZWrUY0Y6IKN1qI4BhxR2C7oHVFgGPYkd38uGq1jQNSqEvJFcN93CYm16_G78FAFKWqwsJb3Wx-nbxDn6LtP4AhULB1H0K0g7_jLklDAHvI8yhOKlvoyvsUFPWtNxlJyh5JJXvkNKV_4Oo12e69f8QCuQ6NpEPl-cSvXIqUYBCs"}]}"#;
    assert!(Keys::parse(short.as_bytes()).is_err(), "1024 bits");
    assert!(Keys::parse(b"{}").is_err() && Keys::parse(b"[]").is_err() && Keys::parse(b"{\"keys\":[]}").is_err());
    let mixed = format!(r#"{{"keys":[{{"kty":"new"}},7,{}"#, &RSA[9..]);
    assert_eq!(keys(&mixed).len(), 1, "a kind from the future does not spoil the set");
}

#[test]
fn a_token_that_names_a_key_is_checked_with_that_key_alone() {
    let named = RSA.replace("\"e\"", "\"kid\":\"a\",\"e\"");
    assert_eq!(check(RSA_TOKEN, &keys(&named)), Ok(Algorithm::Rs256), "a token without kid takes what fits");
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"b"}"#);
    let rest = RSA_TOKEN.split_once('.').unwrap().1;
    assert_eq!(check(&format!("{head}.{rest}"), &keys(&named)), Err(Denied::UnknownKey));
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"a"}"#);
    assert_eq!(check(&format!("{head}.{rest}"), &keys(&named)), Err(Denied::Signature));
}

#[test]
fn what_is_not_a_compact_jws_is_refused_without_a_look_at_the_keys() {
    let head = |json: &str| format!("{}.e30.e30", URL_SAFE_NO_PAD.encode(json));
    for bad in ["", ".", "..", "a.b", "a.b.c.d", "a.b.c.d.e", "=.=.=", &head("{}"), &head("[]"), &head(r#"{"alg":1}"#)]
    {
        assert!(matches!(Jws::parse(bad), Err(Denied::Malformed(_))), "{bad}");
    }
    assert_eq!(Jws::parse(&head(r#"{"alg":"RS256","crit":["exp"]}"#)).unwrap_err(), Denied::Critical);
    assert_eq!(Jws::parse(&head(r#"{"alg":"RS256","crit":[]}"#)).unwrap_err(), Denied::Critical);
    assert!(matches!(Jws::parse(&head(r#"{"alg":"RS256","alg":"ES256"}"#)), Err(Denied::Malformed(_))), "twice");
    let long = format!("{}.e30.e30", "A".repeat(limits::TOKEN_BYTES));
    assert_eq!(Jws::parse(&long).unwrap_err(), Denied::Malformed("it is over the limit of bytes"));
}

/// The private half of the key of RFC 7515 A.2.
fn rsa() -> ring::rsa::KeyPair {
    let bytes = |t: &str| URL_SAFE_NO_PAD.decode(t).unwrap();
    let parts = ring::rsa::KeyPairComponents {
        public_key: ring::rsa::PublicKeyComponents { n: bytes(N), e: bytes("AQAB") },
        d: bytes(
            "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
        ),
        p: bytes(
            "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
        ),
        q: bytes(
            "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
        ),
        dP: bytes(
            "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
        ),
        dQ: bytes(
            "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
        ),
        qInv: bytes(
            "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
        ),
    };
    ring::rsa::KeyPair::from_components(&parts).unwrap()
}

const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";

fn signed_input(a: Algorithm) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{}"}}"#, a.name())), URL_SAFE_NO_PAD.encode("{}"))
}

#[test]
fn every_rsa_algorithm_verifies_what_it_signed_and_no_other_takes_its_signature() {
    let (pair, keys, rng) = (rsa(), keys(RSA), ring::rand::SystemRandom::new());
    let encodings: [(Algorithm, &dyn sig::RsaEncoding); 6] = [
        (Algorithm::Rs256, &sig::RSA_PKCS1_SHA256),
        (Algorithm::Rs384, &sig::RSA_PKCS1_SHA384),
        (Algorithm::Rs512, &sig::RSA_PKCS1_SHA512),
        (Algorithm::Ps256, &sig::RSA_PSS_SHA256),
        (Algorithm::Ps384, &sig::RSA_PSS_SHA384),
        (Algorithm::Ps512, &sig::RSA_PSS_SHA512),
    ];
    for (with, encoding) in encodings {
        for (named, _) in encodings {
            let input = signed_input(named);
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(encoding, &rng, input.as_bytes(), &mut signature).unwrap();
            let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature));
            assert_eq!(check(&token, &keys).is_ok(), with == named, "signed with {with:?}, says {named:?}");
        }
    }
}

#[test]
fn both_curves_verify_what_they_signed_in_the_fixed_form_alone() {
    use ring::signature::{EcdsaKeyPair, KeyPair as _};
    let rng = ring::rand::SystemRandom::new();
    for (a, crv, fixed, asn1) in [
        (Algorithm::Es256, "P-256", &sig::ECDSA_P256_SHA256_FIXED_SIGNING, &sig::ECDSA_P256_SHA256_ASN1_SIGNING),
        (Algorithm::Es384, "P-384", &sig::ECDSA_P384_SHA384_FIXED_SIGNING, &sig::ECDSA_P384_SHA384_ASN1_SIGNING),
    ] {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(fixed, &rng).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(fixed, pkcs8.as_ref(), &rng).unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let keys = keys(&format!(r#"{{"keys":[{{"kty":"EC","crv":"{crv}","x":"{x}","y":"{y}"}}]}}"#));
        let input = signed_input(a);
        let token = |s: &[u8]| format!("{input}.{}", URL_SAFE_NO_PAD.encode(s));
        assert_eq!(check(&token(pair.sign(&rng, input.as_bytes()).unwrap().as_ref()), &keys), Ok(a));
        let der = EcdsaKeyPair::from_pkcs8(asn1, pkcs8.as_ref(), &rng).unwrap();
        assert!(check(&token(der.sign(&rng, input.as_bytes()).unwrap().as_ref()), &keys).is_err(), "RFC 7518 3.4");
        assert!(check(&token(&vec![0; x.len() / 2]), &keys).is_err());
        // CVE-2022-21449: a signature of zeros.
        assert!(check(&token(&vec![0; if a == Algorithm::Es256 { 64 } else { 96 }]), &keys).is_err());
    }
}

//! gRPC steps described by reflection, and what does not match.

use super::support::*;
use serde_json::json;
use weft_flow::Error;

fn reserve_only() -> weft_flow::SagaSpec {
    let reserve = step(
        "reserve",
        grpc("Reserve", json!({"key": "saga.id", "items": "input.items", "until": "'2030-01-01T00:00:00Z'"})),
        Some(grpc("shop.Inventory/Release", json!({"key": "saga.id"}))),
    );
    let result = json!({"left": "reserve.left_count + 1", "id": "reserve.reservation"});
    weft_flow::SagaSpec { result: Some(result), ..saga("r", vec![reserve, simple("charge")]) }
}

#[tokio::test]
async fn a_service_without_proto_files_is_asked_by_reflection() {
    for reflects in [Reflects::V1, Reflects::V1Alpha] {
        let parties = Parties::start(reflects);
        let dir = tempfile::tempdir().unwrap();
        let house = House::open(dir.path()).await;
        house.apply(&[reserve_only()], &parties.services(false)).await;
        for _ in 0..2 {
            let view = house.run("r", input()).await;
            assert_eq!(view.status, "completed", "{view:#?}");
            assert_eq!(view.result, Some(json!({"left": 8, "id": "r-1"})));
        }
        parties.book.order("charge", &[Do::Decline]);
        let view = house.run("r", input()).await;
        assert_eq!(view.status, "compensated");
        assert_eq!(parties.book.in_effect(id(&view)), [""; 0]);
    }
}

#[tokio::test]
async fn a_service_that_cannot_be_asked_is_told_so() {
    let parties = Parties::start(Reflects::No);
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.apply(&[reserve_only()], &parties.services(false)).await;
    let view = house.run("r", input()).await;
    assert_eq!(view.status, "compensated");
    assert!(view.error.as_ref().unwrap().contains("add proto: to it"), "{view:#?}");
    assert_eq!(parties.book.count("reserve"), 0);
}

#[tokio::test]
async fn what_does_not_match_the_proto_is_found_when_applied_or_named_when_called() {
    let parties = Parties::start(Reflects::V1);
    let dir = tempfile::tempdir().unwrap();
    let house = House::open(dir.path()).await;
    house.apply(&[], &parties.services(true)).await;
    let wrong = saga(
        "w",
        vec![
            step("a", grpc("Reserve", json!({"kee": "saga.id"})), None),
            step("b", grpc("Reserv", json!({})), None),
            step("c", grpc("Reserve", json!({"items": [{"sku": "input.sku", "cont": 1}]})), None),
        ],
    );
    let services = parties.services(true);
    let Err(Error::Definitions(mistakes)) = house.flow.apply(std::slice::from_ref(&wrong), &services).await else {
        panic!("it was taken");
    };
    let said: Vec<String> = mistakes[0].1.iter().map(|m| m.to_string()).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].contains("with.kee: shop.Request has no field 'kee'; did you mean 'key'?"), "{said:?}");
    assert!(said[1].contains("no gRPC method 'Reserv'; did you mean 'Reserve'?"), "{said:?}");
    assert!(said[2].contains("with.items[0].cont: shop.Item has no field 'cont'; did you mean 'count'?"), "{said:?}");
    assert!(house.flow.definitions().is_empty(), "a bad reload changes nothing");

    // Without .proto files it shows when it is called.
    house.apply(&[wrong], &parties.services(false)).await;
    let view = house.run("w", input()).await;
    assert_eq!(view.status, "compensated");
    assert!(view.error.as_ref().unwrap().contains("kee"), "{view:#?}");
    // A value of the wrong type is known only when it is called.
    let typed = saga("t", vec![step("a", grpc("Reserve", json!({"key": "input.items"})), None)]);
    house.apply(&[typed], &services).await;
    let view = house.run("t", input()).await;
    assert!(view.error.as_ref().unwrap().contains("shop.Request"), "{view:#?}");
    assert_eq!(parties.book.count("reserve"), 0);
}

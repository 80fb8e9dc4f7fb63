//! Faults on purpose: waiting and failing, for a share of the requests, to see how callers bear it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use weft_core::Deadline;

use super::Bad;
use crate::api::problem::{Problem, code};
use crate::spec;

#[derive(Debug)]
pub(crate) struct Fault {
    delay: Option<(Duration, f64)>,
    abort: Option<(StatusCode, f64)>,
    header: Option<(HeaderName, Option<String>)>,
}

pub(super) fn compile(f: &spec::Fault, bad: &mut Vec<Bad>) -> Option<Fault> {
    let header = match &f.header {
        None => None,
        Some((n, v)) => match HeaderName::from_bytes(n.as_bytes()) {
            Ok(name) => Some((name, v.clone())),
            Err(_) => {
                bad.push(("fault", n.clone(), "is not a header field name: use letters, digits and '-'".to_owned()));
                return None;
            }
        },
    };
    Some(Fault { delay: f.delay, abort: f.abort, header })
}

impl Fault {
    /// Waits, up to the request's deadline, and fails as configured.
    pub(crate) async fn strike(&self, h: &HeaderMap, deadline: Deadline) -> Result<(), Problem> {
        let meant = self.header.as_ref().is_none_or(|(name, want)| {
            h.get_all(name).iter().any(|v| want.as_ref().is_none_or(|w| v.as_bytes() == w.as_bytes()))
        });
        if !meant {
            return Ok(());
        }
        if let Some((time, share)) = self.delay
            && picks(share)
        {
            let wait = tokio::time::sleep(time);
            match deadline.instant() {
                None => wait.await,
                Some(at) => tokio::time::timeout_at(at, wait).await.map_err(|_| {
                    let detail = "this route delays some requests on purpose (fault.delay), here beyond the deadline";
                    Problem::new(code::DEADLINE_EXCEEDED, detail)
                })?,
            }
        }
        match self.abort {
            Some((status, share)) if picks(share) => {
                let detail = "this route fails some requests on purpose (fault.abort)";
                Err(Problem::new(code::FAULT_INJECTED, detail).with_status(status))
            }
            _ => Ok(()),
        }
    }
}

/// Whether one of many is of a share.
pub(crate) fn picks(share: f64) -> bool {
    share >= 1.0 || (share > 0.0 && rand::random::<f64>() < share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn only_requests_with_the_header_wait_and_fail() {
        let f = spec::Fault {
            delay: Some((Duration::from_secs(2), 1.0)),
            abort: Some((StatusCode::IM_A_TEAPOT, 1.0)),
            header: Some(("x-fault".into(), Some("on".into()))),
        };
        let f = compile(&f, &mut Vec::new()).unwrap();
        let began = Instant::now();
        f.strike(&HeaderMap::new(), Deadline::NONE).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        let with = HeaderMap::from_iter([(HeaderName::from_static("x-fault"), "on".parse().unwrap())]);
        assert_eq!(f.strike(&with, Deadline::NONE).await.unwrap_err().status(), 418);
        assert_eq!(began.elapsed().as_secs(), 2);
        let late = f.strike(&with, Deadline::after(Duration::from_secs(1))).await.unwrap_err();
        assert_eq!((late.code(), began.elapsed().as_secs()), (code::DEADLINE_EXCEEDED, 3));
    }

    #[test]
    fn a_share_is_a_share() {
        assert!((0..100).all(|_| picks(1.0) && !picks(0.0)));
        let n = (0..10_000).filter(|_| picks(0.2)).count();
        assert!((1_700..2_300).contains(&n), "{n}");
    }
}

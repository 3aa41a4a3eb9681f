//! Sidecars and hosts.

use agentos_proto::v1;

use super::AnswerError;
use crate::vm::{Facility, FacilityState};

pub(crate) fn facility(facility: v1::Facility) -> Result<Facility, AnswerError> {
    let state = match facility.state() {
        v1::FacilityState::Ok => FacilityState::Ok,
        v1::FacilityState::Degraded => FacilityState::Degraded,
        v1::FacilityState::Missing => FacilityState::Missing,
        v1::FacilityState::Unspecified => {
            return Err(AnswerError::Missing { call: "Doctor", field: "state" });
        }
    };
    let v1::Facility { name, finding, cost, remedy, .. } = facility;
    Ok(Facility { name, state, finding, cost, remedy })
}

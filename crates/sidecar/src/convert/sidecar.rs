//! The sidecar's own words.

use agentos_proto::v1;

use crate::doctor::{Facility, State};
use crate::registry::LeaseState;

impl From<LeaseState> for v1::SidecarState {
    fn from(state: LeaseState) -> Self {
        match state {
            LeaseState::Open => Self::Ready,
            LeaseState::Disposing => Self::Disposing,
            LeaseState::Disposed => Self::Disposed,
        }
    }
}

impl From<Facility> for v1::Facility {
    fn from(line: Facility) -> Self {
        let state = match line.state {
            State::Ok => v1::FacilityState::Ok,
            State::Degraded => v1::FacilityState::Degraded,
            State::Missing => v1::FacilityState::Missing,
        };
        Self {
            name: line.name.to_owned(),
            state: state.into(),
            finding: line.finding,
            cost: line.cost.to_owned(),
            remedy: line.remedy,
        }
    }
}

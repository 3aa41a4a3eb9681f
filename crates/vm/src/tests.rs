//! Stories of VMs whose launcher and init are played by the test, see [`fake`].

mod fake;
mod files;
mod hostile;
mod life;
mod network;
mod processes;
mod shells;
mod uplinks;

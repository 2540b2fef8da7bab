//! Docker's engine by its API: images, containers, volumes; and a PostgreSQL server in a container of its own, by the
//! conventions of the official image. Only this crate names `bollard`.
//!
//! The engine is the one that `DOCKER_HOST` names, else the one behind the usual socket. Whatever is asked of it has a
//! deadline.

mod answer;
mod engine;
mod error;
mod exec;
mod found;
mod image;
mod server;

pub use engine::{ContainerState, Engine};
pub use error::DockerError;
pub use exec::ContainerProgram;
pub use found::{ComposeService, FoundServer};
pub use image::{Image, ImageName, Pulled};
pub use server::{ServerContainer, ServerOptions, Started};

//! `didact bench decode`.

use super::{BenchModel, ShapeArgs};
use crate::cli::Global;
use crate::output::{Output, Status};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    shape: ShapeArgs,
}

pub(super) fn run(args: &DecodeArgs, _global: &Global, _threads: usize, output: &Output) -> anyhow::Result<Status> {
    let BenchModel { name, batch, seq, .. } = BenchModel::find(&args.shape, output)?;
    anyhow::bail!("this build cannot measure `decode` yet ({name}, {batch} x {seq})")
}

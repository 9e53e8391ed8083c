//! `qcow check`: whether an image agrees with itself, and the repair of counts.

use std::path::{Path, PathBuf};

use qcow::Error;
use qcow::disk::uring::{UringDisk, block_on};
use qcow::engine::check::{CheckSummary, Crew, Finding, Repair, check_by, is_authenticated};
use qcow::format::sealed::root::RootTag;
use serde::Serialize;

use crate::arguments::{ImageArgs, OutputArgs, OutputFormat, ThreadsArgs, one_file};
use crate::cache::Cache;
use crate::failure::{self, Failure, Outcome};
use crate::image::{self, Opening};
use crate::output::{self, say};

mod sealed;

use sealed::SealedChecker;

const COMMAND: &str = "check";

/// The image could not be checked, or not wholly.
const CHECK_FAILED: u8 = 1;
/// Data is lost or in danger.
const CORRUPT: u8 = 2;
/// Space is wasted, and no more than that.
const LEAKS: u8 = 3;
/// The format has nothing to check.
const NOT_SUPPORTED: u8 = 63;

/// Check an image for consistency; exit code 0 clean, 1 not checked, 2 corrupt, 3 leaks only, 63 nothing to check in this format
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tell of findings, on stderr
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    image: ImageArgs,
    /// Cache mode: writeback (default), writethrough, none, directsync or unsafe
    #[arg(short = 'T', long, value_name = "MODE")]
    cache: Option<String>,
    /// Repair: 'leaks' gives wasted space back; 'all' also repairs everything else, and what an entry of a table that is
    /// wrong in itself told of is lost
    #[arg(short, long, value_name = "leaks|all")]
    repair: Option<String>,
    /// Check even while another program uses the image; then findings may be wrong
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Of an authenticated image, read all data, too
    #[arg(long)]
    scrub: bool,
    /// Of an authenticated image, fail unless it has this root (GENERATION:TAG, as 'info' tells it) or a later one: an older
    /// state of the file that somebody has put in its place is found out so
    #[arg(long, value_name = "ROOT")]
    root: Option<RootTag>,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The image to check
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs the command; its exit code.
pub fn run(args: &Args) -> Outcome<u8> {
    let output = args.output.format(COMMAND)?;
    let repair = parse_repair(args.repair.as_deref())?;
    let path = one_file(COMMAND, &args.files)?;
    let cache = Cache::parse_option(args.cache.as_deref(), "source cache", Cache::WRITEBACK)?;
    let opening = Opening {
        writable: repair != Repair::None,
        cache,
        shared: args.force_share,
        ..args.image.opening()
    };
    let Some(disk) = opening.open_qcow2_file(path)? else {
        if opening.writable && opening.source(path).is_ok_and(|source| source.format.is_none()) {
            image::warn_of_guess(path);
        }
        let what = "This image format does not support checks";
        return Err(Failure::new(what).with_code(NOT_SUPPORTED));
    };
    let report = if block_on(is_authenticated(&disk))? {
        drop(disk);
        let checker = SealedChecker { opening, path, scrub: args.scrub, root: args.root };
        checker.check_and_repair(repair, args.quiet || output == OutputFormat::Json)?
    } else {
        if args.scrub || args.root.is_some() {
            let what = "--scrub and --root are for authenticated images (create -o integrity=...)";
            return Err(Failure::new(what).with_code(NOT_SUPPORTED));
        }
        let checker = Checker { disk: &disk, path, crew: args.threads.crew() };
        checker.check_and_repair(repair, args.quiet, output)?
    };
    if !args.quiet {
        match output {
            OutputFormat::Human => report.print(),
            OutputFormat::Json => output::json(&report.to_json(path)),
        }
    }
    match report.exit_code() {
        CHECK_FAILED => Err(Failure::new("Check failed").with_code(CHECK_FAILED)),
        code => Ok(code),
    }
}

/// What a check has found, and what a repair before it has fixed.
struct Report {
    summary: CheckSummary,
    leaks_fixed: u64,
    corruptions_fixed: u64,
}

struct Checker<'c> {
    disk: &'c UringDisk,
    path: &'c Path,
    crew: Crew,
}

impl Checker<'_> {
    fn check_and_repair(
        &self,
        repair: Repair,
        quiet: bool,
        output: OutputFormat,
    ) -> Outcome<Report> {
        let mut summary = self.check(repair)?;
        let (leaks_fixed, corruptions_fixed) = (summary.leaks_fixed, summary.corruptions_fixed);
        if leaks_fixed + corruptions_fixed > 0 {
            if !quiet && output == OutputFormat::Human {
                print_repairs(leaks_fixed, corruptions_fixed);
            }
            summary = self.check(Repair::None)?;
        }
        if let Some(abort) = summary.aborted {
            return Err(Failure::new(format!("Check failed: {abort}")).with_code(CHECK_FAILED));
        }
        Ok(Report { summary, leaks_fixed, corruptions_fixed })
    }

    fn check(&self, repair: Repair) -> Outcome<CheckSummary> {
        let checked = block_on(check_by(self.crew, self.disk, self.path, repair, &mut tell));
        let failed = |e: Error| Failure::new(format!("Check failed: {e}")).with_code(CHECK_FAILED);
        checked.map_err(failed)
    }
}

fn tell(finding: &Finding) {
    match finding {
        Finding::SnapshotTableUnusable { .. } | Finding::NotRepaired { .. } => {
            failure::tell(&finding.to_string());
        }
        _ => failure::tell_plain(&finding.to_string()),
    }
}

fn parse_repair(name: Option<&str>) -> Outcome<Repair> {
    match name {
        None => Ok(Repair::None),
        Some("leaks") => Ok(Repair::Leaks),
        Some("all") => Ok(Repair::All),
        Some(other) => {
            let message = format!("--repair (-r) expects 'leaks' or 'all' not '{other}'");
            Err(Failure::usage(COMMAND, message))
        }
    }
}

fn print_repairs(leaks: u64, corruptions: u64) {
    say!("The following inconsistencies were found and repaired:");
    say!("");
    say!("    {leaks} leaked clusters");
    say!("    {corruptions} corruptions");
    say!("");
    say!("Double checking the fixed image now...");
}

/// What is told as JSON. Counts of what was not found are left out, as QEMU leaves them out.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct JsonReport {
    filename: String,
    format: &'static str,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks this way")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Report {
    fn exit_code(&self) -> u8 {
        match &self.summary {
            summary if summary.check_errors > 0 => CHECK_FAILED,
            summary if summary.corruptions > 0 => CORRUPT,
            summary if summary.leaks > 0 => LEAKS,
            _ => 0,
        }
    }

    fn print(&self) {
        let summary = &self.summary;
        if summary.is_clean() {
            say!("No errors were found on the image.");
        }
        if summary.corruptions > 0 {
            say!("\n{} errors were found on the image.", summary.corruptions);
            say!("Data may be corrupted, or further writes to the image may corrupt it.");
        }
        if summary.leaks > 0 {
            say!("\n{} leaked clusters were found on the image.", summary.leaks);
            say!("This means waste of disk space, but no harm to data.");
        }
        if summary.check_errors > 0 {
            say!("\n{} internal errors have occurred during the check.", summary.check_errors);
        }
        if summary.total_clusters > 0 && summary.allocated_clusters > 0 {
            self.print_clusters();
        }
        if summary.image_end_offset > 0 {
            say!("Image end offset: {}", summary.image_end_offset);
        }
    }

    fn print_clusters(&self) {
        let summary = &self.summary;
        let (total, allocated) = (summary.total_clusters, summary.allocated_clusters);
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        say!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, total),
            percent(summary.fragmented_clusters, allocated),
            percent(summary.compressed_clusters, allocated)
        );
    }

    fn to_json(&self, path: &Path) -> JsonReport {
        let summary = &self.summary;
        JsonReport {
            filename: path.to_string_lossy().into_owned(),
            format: "qcow2",
            check_errors: summary.check_errors,
            image_end_offset: summary.image_end_offset,
            corruptions: summary.corruptions,
            leaks: summary.leaks,
            corruptions_fixed: self.corruptions_fixed,
            leaks_fixed: self.leaks_fixed,
            total_clusters: summary.total_clusters,
            allocated_clusters: summary.allocated_clusters,
            fragmented_clusters: summary.fragmented_clusters,
            compressed_clusters: summary.compressed_clusters,
        }
    }
}

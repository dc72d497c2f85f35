//! Metrics as plain functions: of texts ([`answer`], [`bleu`], [`rouge`]), of token lists ([`diversity`]), of probabilities
//! ([`calibration`]) and of counts ([`pass_at_k`]). [`statistics`] has errors of means and comparisons of two lists.

pub mod answer;
pub mod bleu;
pub mod calibration;
pub mod diversity;
pub mod pass_at_k;
pub mod rouge;
pub mod statistics;

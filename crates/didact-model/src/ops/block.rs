//! A whole transformer block as one operator: `x += attention(norm(x)); x += feed_forward(norm(x))`.
//!
//! Burn's graph sees one node per block, so that what is kept for the backward pass, in what form, and when it is freed
//! is decided here. The outputs of norms and of the non-linearity are not kept but made again, in the pass over the rows
//! that needs them; with `recompute`, only the block's input is kept and everything else is made again. Everything but
//! attention works through the rows in pieces that stay in the caches, so that sums of the residual stream, norms and
//! non-linearities cost little beside the products.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use burn_autodiff::NodeId;
use burn_backend::{DType, Shape};
use burn_flex::FlexTensor;
use didact_kernels::Precision;

use super::attention::AttentionPlan;
use super::group::{Group, Hidden, LowRank, Member, Nodes, Own};
use super::linear::{Dropout, Projection, WeightLayout};
use super::pool::{Buffer, Kept};
use super::real::Real;
use super::storage::{Tracked, contiguous, dims2, into_values, tensor, values, with_real};
use super::{activation, norm};
use crate::config::Activation;
use crate::gradients::deliver;
use crate::parameters::ParameterValue;
use crate::profile::{Operator, Pass, scope};

/// A norm's parameters.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) gain: Tensor<1>,
    /// With a bias this is a layer norm, without an RMS norm.
    pub(crate) bias: Option<Tensor<1>>,
}

/// A block's parameters.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) attention_norm: Norm,
    /// One to three layers that give queries, keys and values side by side.
    pub(crate) qkv: Vec<Projection>,
    /// Gains of the norms of query and key heads.
    pub(crate) head_gains: Option<[Tensor<1>; 2]>,
    pub(crate) attention_out: Projection,
    pub(crate) feed_norm: Norm,
    /// One layer, or gate and up.
    pub(crate) feed_in: Vec<Projection>,
    pub(crate) feed_out: Projection,
}

/// What a block is told beside its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) attention: Arc<AttentionPlan>,
    /// Added to the variance in norms.
    pub(crate) eps: f64,
    pub(crate) activation: Activation,
    pub(crate) precision: Precision,
    /// Keep only the input, and do the forward pass again before the backward pass.
    pub(crate) recompute: bool,
}

/// Applies a block to `x`, on this processor.
///
/// # Shapes
/// - `x`: `[N, E]`
/// - returns: `[N, E]`
///
/// # Panics
/// If a shape does not fit.
pub(crate) fn block(x: Tensor<2>, block: Block, settings: &Settings) -> Tensor<2> {
    let [_, width] = x.dims();
    let (slots, plan) = flatten(block, settings, width);
    if x.device().is_autodiff() {
        let x = x.try_into_primitive::<Autodiff<Flex>>().expect("on this processor, without Burn's checkpointing");
        let slots = slots.map(|slot| slot.map(ParameterValue::tracked_primitive));
        let is_f64 = super::storage::is_f64(x.primitive());
        let y = if is_f64 { tracked::<f64>(x, slots, plan) } else { tracked::<f32>(x, slots, plan) };
        return Tensor::from_primitive::<Autodiff<Flex>>(y);
    }
    let x = contiguous(&x.try_into_primitive::<Flex>().expect("on this processor"));
    let slots = slots.map(|slot| slot.map(|value| contiguous(&value.primitive())));
    let y = with_real!(&x, E => {
        let views = Views::<E>::new(&slots, &plan);
        let mut y = vec![E::ZERO; values::<E>(&x).len()];
        forward(values(&x), &views, &plan, false, Some(&mut y));
        tensor(y, dims2(&x))
    });
    Tensor::from_primitive::<Flex>(y)
}

/// Layers of a block at most: three for queries, keys and values, one after attention, two and one of the feed-forward.
const LAYERS: usize = 7;
/// Where the layers' tensors begin among the slots: after two norms' gains and biases and the two head gains.
const FIRST_LAYER: usize = 6;
/// Tensors of a block at most; a layer has a weight, a bias, and its branch's `A` and `B`.
const SLOTS: usize = FIRST_LAYER + 4 * LAYERS;
/// Parents of a block's node: the input and its tensors.
const PARENTS: usize = 1 + SLOTS;

type Slots<T> = [Option<T>; SLOTS];

/// A block but for its numbers.
#[derive(Debug)]
struct Plan {
    settings: Settings,
    attention_norm: norm::Plan,
    head_norm: Option<norm::Plan>,
    feed_norm: norm::Plan,
    activation: activation::Plan,
    layers: Vec<Layer>,
    /// The members of each group of layers.
    groups: [Range<usize>; 4],
    /// Columns of the input.
    width: usize,
}

/// A layer but for its numbers.
#[derive(Debug)]
struct Layer {
    layout: WeightLayout,
    scale: f64,
    dropout: Option<Dropout>,
}

/// The groups of layers.
const QKV: usize = 0;
const ATTENTION_OUT: usize = 1;
const FEED_IN: usize = 2;
const FEED_OUT: usize = 3;

fn flatten(block: Block, settings: &Settings, width: usize) -> (Slots<ParameterValue>, Plan) {
    let Block { attention_norm, qkv, head_gains, attention_out, feed_norm, feed_in, feed_out } = block;
    let (heads, kv_heads) = (settings.attention.heads, settings.attention.kv_heads);
    let eps = settings.eps;
    let norm_plan = |norm: &Norm| {
        if norm.bias.is_some() { norm::Plan::layer(width, eps) } else { norm::Plan::rms(width, eps) }
    };
    let head_norm = head_gains.as_ref().map(|[query, _]| norm::Plan::heads(query.dims()[0], heads, kv_heads, eps));
    let ends = [qkv.len(), 1, feed_in.len(), 1].into_iter().scan(0, |end, count| {
        *end += count;
        Some(*end - count..*end)
    });
    let ends: Vec<Range<usize>> = ends.collect();
    let mut plan = Plan {
        settings: settings.clone(),
        attention_norm: norm_plan(&attention_norm),
        head_norm,
        feed_norm: norm_plan(&feed_norm),
        activation: activation::Plan { kind: settings.activation, gated: feed_in.len() == 2 },
        layers: Vec::new(),
        groups: std::array::from_fn(|i| ends[i].clone()),
        width,
    };
    let mut slots: Slots<ParameterValue> = std::array::from_fn(|_| None);
    let [query_gain, key_gain] = head_gains.map_or([None, None], |gains| gains.map(Some));
    let vectors =
        [Some(attention_norm.gain), attention_norm.bias, query_gain, key_gain, Some(feed_norm.gain), feed_norm.bias];
    for (slot, vector) in slots.iter_mut().zip(vectors) {
        *slot = vector.map(ParameterValue::Vector);
    }
    let layers = qkv.into_iter().chain([attention_out]).chain(feed_in).chain([feed_out]);
    for (index, layer) in layers.enumerate() {
        let own = &mut slots[FIRST_LAYER + 4 * index..][..4];
        own[0] = Some(ParameterValue::Matrix(layer.weight));
        own[1] = layer.bias.map(ParameterValue::Vector);
        plan.layers.push(Layer {
            layout: layer.layout,
            scale: layer.lora.as_ref().map_or(1.0, |branch| branch.scale),
            dropout: layer.lora.as_ref().and_then(|branch| branch.dropout),
        });
        if let Some(branch) = layer.lora {
            own[2] = Some(ParameterValue::Matrix(branch.a));
            own[3] = Some(ParameterValue::Matrix(branch.b));
        }
    }
    (slots, plan)
}

/// A block's numbers.
struct Views<'a, E> {
    attention_norm: [&'a [E]; 2],
    head_gains: Option<[&'a [E]; 2]>,
    feed_norm: [&'a [E]; 2],
    groups: [Group<'a, E>; 4],
}

impl<'a, E: Real> Views<'a, E> {
    fn new(slots: &'a Slots<FlexTensor>, plan: &Plan) -> Self {
        let vector = |slot: usize| slots[slot].as_ref().map(values::<E>);
        let norm = |slot: usize| {
            let gain = vector(slot).expect("a norm has a gain");
            [gain, vector(slot + 1).unwrap_or(gain)]
        };
        let groups = std::array::from_fn(|group| {
            let members: Vec<Member<'a, E>> = plan.groups[group]
                .clone()
                .map(|layer| member(&slots[FIRST_LAYER + 4 * layer..], &plan.layers[layer]))
                .collect();
            let first = &members[0];
            let inputs = first.weight.len() / first.outputs;
            Group { members, inputs, precision: plan.settings.precision }
        });
        Self {
            attention_norm: norm(0),
            head_gains: vector(2).zip(vector(3)).map(|(query, key)| [query, key]),
            feed_norm: norm(4),
            groups,
        }
    }
}

fn member<'a, E: Real>(slots: &'a [Option<FlexTensor>], layer: &Layer) -> Member<'a, E> {
    let weight = slots[0].as_ref().expect("a layer has a weight");
    let dims = dims2(weight);
    let outputs = match layer.layout {
        WeightLayout::OutIn => dims[0],
        WeightLayout::InOut => dims[1],
    };
    let low_rank = slots[2].as_ref().zip(slots[3].as_ref()).map(|(a, b)| LowRank {
        a: values(a),
        b: values(b),
        rank: dims2(a)[0],
        scale: layer.scale,
        dropout: layer.dropout,
    });
    Member { weight: values(weight), layout: layer.layout, bias: slots[1].as_ref().map(values), low_rank, outputs }
}

/// What the backward pass needs of a forward pass, beside the block's input.
#[derive(Debug, Clone)]
struct Inner<E: Real> {
    /// Queries, keys and values before the norms of heads, `[N, (H + 2K)·D]`.
    qkv: Buffer<E>,
    /// What attention gives, `[N, H·D]`.
    attended: Buffer<E>,
    log_sums: Vec<E>,
    /// The residual stream between the block's halves, `[N, E]`.
    middle: Buffer<E>,
    /// The feed-forward before its non-linearity.
    before: Kept<E>,
    /// What low-rank branches keep, group by group.
    hidden: [Vec<Hidden<E>>; 4],
}

/// Numbers of the widest matrix that are worked on at a time, about.
pub(crate) const PIECE: usize = 3 << 20;

/// Ranges of rows of nearly even size, of matrices that are `width` wide where they are widest. A function of the shape
/// alone, since it decides the order in which gradients add up.
fn pieces(rows: usize, width: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = (rows * width).div_ceil(PIECE).max(1);
    let size = rows.div_ceil(count).next_multiple_of(64);
    (0..rows).step_by(size).map(move |first| first..rows.min(first + size))
}

/// The elements of some rows.
fn rows(range: &Range<usize>, width: usize) -> Range<usize> {
    range.start * width..range.end * width
}

/// The forward pass: writes the output to `out`, unless only what is kept is wanted.
fn forward<E: Real>(
    x: &[E],
    views: &Views<'_, E>,
    plan: &Plan,
    keep: bool,
    mut out: Option<&mut [E]>,
) -> Option<Inner<E>> {
    let (width, n) = (plan.width, x.len() / plan.width);
    let [qkv_layers, attention_out, feed_in, feed_out] = &views.groups;
    let (qkv_width, feed_width) = (qkv_layers.width(), feed_in.width());
    plan.settings.attention.check([n, qkv_width]);
    let pass = if out.is_some() { Pass::Forward } else { Pass::Backward };
    let mut hidden = std::array::from_fn(|group| vec![None; views.groups[group].members.len()]);
    let pieces = pieces(n, feed_width);
    let most = pieces.clone().map(|piece| piece.len()).max().unwrap_or(0);
    let mut normed = Buffer::any(most * width);

    let mut qkv = Buffer::any(n * qkv_width);
    let packed = {
        let _time = scope(Operator::Projection, pass);
        qkv_layers.pack_forward()
    };
    for piece in pieces.clone() {
        let normed = &mut normed[..piece.len() * width];
        let here = rows(&piece, width);
        {
            let _time = scope(Operator::Norm, pass);
            norm::forward_slice(normed, &x[here], None, views.attention_norm, width, plan.attention_norm);
        }
        let _time = scope(Operator::Projection, pass);
        let y = &mut qkv[rows(&piece, qkv_width)];
        qkv_layers.forward(Some(&packed), piece.start, normed, y, &mut hidden[QKV]);
    }
    drop(packed);

    let mut attended = Buffer::any(n * attention_out.inputs);
    let head_normed = normalised_heads(&qkv, views, plan, pass);
    let mut log_sums = vec![E::ZERO; n * plan.settings.attention.heads];
    {
        let _time = scope(Operator::Attention, pass);
        let seen = head_normed.as_deref().unwrap_or(&qkv);
        E::attention(&plan.settings.attention.for_kernel(), seen, &mut attended, &mut log_sums);
    }
    drop(head_normed);

    let is_half = plan.settings.precision == Precision::Bf16;
    let mut middle = Buffer::any(if keep { n } else { most } * width);
    let mut before = Kept::new(if keep { n } else { 0 }, feed_width, is_half);
    let mut scratch = Buffer::any(if keep && !before.is_half() { 0 } else { most * feed_width });
    let mut activated = Buffer::any(most * feed_out.inputs);
    let mut added = Buffer::any(most * width);
    let [packed_attention, packed_in, packed_out] = {
        let _time = scope(Operator::Projection, pass);
        [attention_out, feed_in, feed_out].map(Group::pack_forward)
    };
    for piece in pieces {
        let here = rows(&piece, width);
        let normed = &mut normed[..here.len()];
        let added = &mut added[..here.len()];
        let activated = &mut activated[..piece.len() * feed_out.inputs];
        {
            let _time = scope(Operator::Projection, pass);
            let attended = &attended[rows(&piece, attention_out.inputs)];
            attention_out.forward(Some(&packed_attention), piece.start, attended, added, &mut hidden[ATTENTION_OUT]);
        }
        let middle = &mut middle[if keep { here.clone() } else { 0..here.len() }];
        {
            let _time = scope(Operator::Norm, pass);
            let sum = Some((&*added, &mut *middle));
            norm::forward_slice(normed, &x[here.clone()], sum, views.feed_norm, width, plan.feed_norm);
        }
        {
            let length = piece.len() * feed_width;
            let place = if keep {
                if before.is_half() { &mut scratch[..length] } else { before.rows_mut(piece.start, piece.len()) }
            } else {
                &mut scratch[..length]
            };
            {
                let _time = scope(Operator::Projection, pass);
                feed_in.forward(Some(&packed_in), piece.start, normed, place, &mut hidden[FEED_IN]);
            }
            let _time = scope(Operator::Activation, pass);
            if out.is_some() || feed_out.has_branches() {
                activation::forward_slice(activated, place, feed_width, plan.activation);
            }
            if keep && before.is_half() {
                before.store(piece.start, &scratch[..length]);
            }
        }
        {
            let _time = scope(Operator::Projection, pass);
            if out.is_some() {
                feed_out.forward(Some(&packed_out), piece.start, activated, added, &mut hidden[FEED_OUT]);
            } else {
                feed_out.branches(piece.start, activated, &mut hidden[FEED_OUT]);
            }
        }
        if let Some(out) = out.as_deref_mut() {
            let _time = scope(Operator::Norm, pass);
            norm::sum_slice(&mut out[here], middle, added);
        }
    }
    keep.then_some(Inner { qkv, attended, log_sums, middle, before, hidden })
}

/// Queries and keys after the norms of heads, where there are such.
fn normalised_heads<E: Real>(qkv: &[E], views: &Views<'_, E>, plan: &Plan, pass: Pass) -> Option<Buffer<E>> {
    let (gains, norm_plan) = views.head_gains.zip(plan.head_norm)?;
    let _time = scope(Operator::Norm, pass);
    let mut normed = Buffer::any(qkv.len());
    norm::forward_slice(&mut normed, qkv, None, gains, plan.settings.attention.width(), norm_plan);
    Some(normed)
}

/// What a block's node keeps.
#[derive(Debug, Clone)]
struct State<E: Real> {
    x: FlexTensor,
    slots: Slots<FlexTensor>,
    plan: Arc<Plan>,
    /// Nothing when it is to be made again.
    inner: Option<Inner<E>>,
}

#[derive(Debug)]
struct BlockBackward<E>(PhantomData<E>);

fn tracked<E: Real>(x: Tracked, slots: Slots<Tracked>, plan: Plan) -> Tracked {
    // A parent for the places where there is no tensor; it never asks for a gradient.
    let absent = Tracked::new(FlexTensor::zeros(Shape::from(vec![1]), DType::F32));
    let nodes = std::array::from_fn(|i| match i.checked_sub(1) {
        None => x.node(),
        Some(slot) => slots[slot].as_ref().unwrap_or(&absent).node(),
    });
    let x = contiguous(x.primitive());
    let slots = slots.map(|slot| slot.map(|t| contiguous(t.primitive())));
    let mut y = vec![E::ZERO; values::<E>(&x).len()];
    let run = |y: &mut [E], keep: bool| forward(values(&x), &Views::new(&slots, &plan), &plan, keep, Some(y));
    match BlockBackward::<E>(PhantomData).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let inner = run(&mut y, !plan.settings.recompute);
            let y = tensor(y, dims2(&x));
            prep.finish(State { x, slots, plan: Arc::new(plan), inner }, y)
        }
        OpsKind::UnTracked(prep) => {
            run(&mut y, false);
            let y = tensor(y, dims2(&x));
            prep.finish(y)
        }
    }
}

impl<E: Real> Backward<Flex, PARENTS> for BlockBackward<E> {
    type State = State<E>;

    fn backward(self, ops: Ops<State<E>, PARENTS>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = into_values::<E>(grads.consume::<Flex>(&ops.node));
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        backward(ops.state, dy, &parents, grads);
    }
}

/// Adds one piece's gradients of a norm's vectors to those of the pieces before.
fn add<E: Real>(sum: &mut [E], part: Vec<E>) {
    sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
}

/// Hands over the gradients of a norm's two vectors.
fn deliver_norm<E: Real>(grads: &mut Gradients, nodes: [Option<NodeId>; 2], mut both: Vec<E>) {
    let after = both.split_off(both.len() / 2);
    for (node, values) in nodes.into_iter().zip([both, after]) {
        if let Some(node) = node {
            let shape = [values.len()];
            deliver(grads, node, values, shape);
        }
    }
}

fn backward<E: Real>(state: State<E>, mut dy: Vec<E>, parents: &[Option<NodeId>; PARENTS], grads: &mut Gradients) {
    let State { x: input, slots, plan, inner } = state;
    let views = Views::<E>::new(&slots, &plan);
    let x = values::<E>(&input);
    let (width, n) = (plan.width, x.len() / plan.width);
    let node = |slot: usize| parents[1 + slot];
    let nodes: [Vec<Nodes>; 4] = std::array::from_fn(|group| {
        let layers = plan.groups[group].clone();
        layers.map(|layer| std::array::from_fn(|j| node(FIRST_LAYER + 4 * layer + j))).collect()
    });
    let inner = inner.or_else(|| forward(x, &views, &plan, true, None)).expect("it was asked to keep");
    let Inner { qkv, attended, log_sums, middle, mut before, hidden } = inner;
    let [qkv_layers, attention_out, feed_in, feed_out] = &views.groups;
    let feed_width = feed_in.width();
    let begin = |group: usize| -> Vec<Own<E>> {
        nodes[group].iter().zip(&views.groups[group].members).map(|(nodes, member)| Own::new(nodes, member)).collect()
    };
    let finish = |group: usize, own: Vec<Own<E>>, grads: &mut Gradients| {
        let Group { members, inputs, .. } = &views.groups[group];
        for ((own, nodes), member) in own.into_iter().zip(&nodes[group]).zip(members) {
            own.finish(grads, nodes, member, *inputs);
        }
    };
    let pieces = pieces(n, feed_width);
    let most = pieces.clone().map(|piece| piece.len()).max().unwrap_or(0);
    let mut normed = Buffer::any(most * width);
    let mut d_normed = Buffer::any(most * width);

    // The feed-forward and the projection after attention, piece by piece. From here on `dy` is the gradient of the
    // residual stream.
    let mut d_attended = Buffer::any(n * attention_out.inputs);
    let mut feed_vectors = vec![E::ZERO; 2 * width];
    {
        let mut own = [ATTENTION_OUT, FEED_IN, FEED_OUT].map(begin);
        let mut scratch = Buffer::any(if before.is_half() { most * feed_width } else { 0 });
        let mut d_activated = Buffer::any(most * feed_out.inputs);
        let [packed_attention, packed_in, packed_out] = {
            let _time = scope(Operator::Projection, Pass::Backward);
            [attention_out, feed_in, feed_out].map(Group::pack_backward)
        };
        for piece in pieces.clone() {
            let (first, here) = (piece.start, rows(&piece, width));
            let dy = &mut dy[here.clone()];
            let normed = &mut normed[..here.len()];
            let d_normed = &mut d_normed[..here.len()];
            let d_activated = &mut d_activated[..piece.len() * feed_out.inputs];
            let middle = &middle[here.clone()];
            let through = {
                let _time = scope(Operator::Projection, Pass::Backward);
                feed_out.backward_input(Some(&packed_out), first, dy, Some(&mut *d_activated))
            };
            // Before the non-linearity and its gradient; after it and the output.
            let (d_inner, output) = {
                let _time = scope(Operator::Activation, Pass::Backward);
                let d_inner = if before.is_half() {
                    before.load(first, &mut scratch[..piece.len() * feed_width]);
                    &mut scratch[..piece.len() * feed_width]
                } else {
                    before.rows_mut(first, piece.len())
                };
                activation::backward_slice(d_inner, d_activated, feed_width, plan.activation);
                (&*d_inner, &*d_activated)
            };
            {
                let _time = scope(Operator::Projection, Pass::Backward);
                feed_out.backward_own(first, output, dy, &through, &hidden[FEED_OUT], &nodes[FEED_OUT], &mut own[2]);
            }
            {
                let _time = scope(Operator::Norm, Pass::Backward);
                norm::forward_slice(normed, middle, None, views.feed_norm, width, plan.feed_norm);
            }
            {
                let _time = scope(Operator::Projection, Pass::Backward);
                let through = feed_in.backward_input(Some(&packed_in), first, d_inner, Some(&mut *d_normed));
                feed_in.backward_own(first, normed, d_inner, &through, &hidden[FEED_IN], &nodes[FEED_IN], &mut own[1]);
            }
            {
                let _time = scope(Operator::Norm, Pass::Backward);
                let part =
                    norm::backward_slice(Some(&mut *dy), middle, d_normed, views.feed_norm, width, plan.feed_norm);
                add(&mut feed_vectors, part);
            }
            let _time = scope(Operator::Projection, Pass::Backward);
            let there = rows(&piece, attention_out.inputs);
            let d_attended = &mut d_attended[there.clone()];
            let through = attention_out.backward_input(Some(&packed_attention), first, dy, Some(d_attended));
            let (hidden, nodes) = (&hidden[ATTENTION_OUT], &nodes[ATTENTION_OUT]);
            attention_out.backward_own(first, &attended[there], dy, &through, hidden, nodes, &mut own[0]);
        }
        let _time = scope(Operator::Projection, Pass::Backward);
        for (group, own) in [ATTENTION_OUT, FEED_IN, FEED_OUT].into_iter().zip(own) {
            finish(group, own, grads);
        }
    }
    drop((middle, before));

    let mut d_qkv = Buffer::any(qkv.len());
    {
        let head_normed = normalised_heads(&qkv, &views, &plan, Pass::Backward);
        let _time = scope(Operator::Attention, Pass::Backward);
        let seen = head_normed.as_deref().unwrap_or(&qkv);
        let kernel = plan.settings.attention.for_kernel();
        E::attention_backward(&kernel, seen, &attended, &log_sums, &d_attended, &mut d_qkv);
    }
    drop((attended, d_attended));
    if let Some((gains, norm_plan)) = views.head_gains.zip(plan.head_norm) {
        let _time = scope(Operator::Norm, Pass::Backward);
        let mut before = Buffer::zeros(qkv.len());
        let columns = plan.settings.attention.width();
        let both = norm::backward_slice(Some(&mut before), &qkv, &d_qkv, gains, columns, norm_plan);
        deliver_norm(grads, [node(2), node(3)], both);
        d_qkv = before;
    }
    drop(qkv);

    let mut own = begin(QKV);
    let mut attention_vectors = vec![E::ZERO; 2 * width];
    let needs_x = parents[0].is_some();
    let needs_normed = needs_x || node(0).is_some() || node(1).is_some();
    let packed = needs_normed.then(|| {
        let _time = scope(Operator::Projection, Pass::Backward);
        qkv_layers.pack_backward()
    });
    for piece in pieces {
        let (first, here) = (piece.start, rows(&piece, width));
        let normed = &mut normed[..here.len()];
        let d_normed = &mut d_normed[..here.len()];
        {
            let _time = scope(Operator::Norm, Pass::Backward);
            norm::forward_slice(normed, &x[here.clone()], None, views.attention_norm, width, plan.attention_norm);
        }
        {
            let _time = scope(Operator::Projection, Pass::Backward);
            let d_qkv = &d_qkv[rows(&piece, qkv_layers.width())];
            let through =
                qkv_layers.backward_input(packed.as_ref(), first, d_qkv, needs_normed.then_some(&mut *d_normed));
            qkv_layers.backward_own(first, normed, d_qkv, &through, &hidden[QKV], &nodes[QKV], &mut own);
        }
        if needs_normed {
            let _time = scope(Operator::Norm, Pass::Backward);
            let dy = needs_x.then_some(&mut dy[here.clone()]);
            let part = norm::backward_slice(dy, &x[here], d_normed, views.attention_norm, width, plan.attention_norm);
            add(&mut attention_vectors, part);
        }
    }
    finish(QKV, own, grads);
    deliver_norm(grads, [node(0), node(1)], attention_vectors);
    deliver_norm(grads, [node(4), node(5)], feed_vectors);
    if let Some(parent) = parents[0] {
        grads.register::<Flex>(parent, tensor(dy, [n, width]));
    }
}

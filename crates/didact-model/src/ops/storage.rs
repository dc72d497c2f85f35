//! From Burn's tensors to slices and back.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{Device, Tensor};
use burn_backend::{DType, Shape, TensorMetadata};
use burn_flex::FlexTensor;

use super::real::Real;

/// A tensor on the device that records gradients, as the extension points see it.
pub(crate) type Tracked = FloatTensor<Autodiff<Flex>>;

/// The tensor with its elements in row-major order; shares the buffer when they already are.
pub(crate) fn contiguous(tensor: &FlexTensor) -> FlexTensor {
    if tensor.layout().contiguous_offsets().is_some() { tensor.clone() } else { tensor.to_contiguous() }
}

/// The elements of a contiguous tensor.
///
/// # Panics
/// If the tensor is not contiguous or holds another number type.
pub(crate) fn values<E: Real>(tensor: &FlexTensor) -> &[E] {
    let (start, end) = tensor.layout().contiguous_offsets().expect("made contiguous by the operator's entry");
    &tensor.storage::<E>()[start..end]
}

/// The elements in row-major order, without a copy where nobody else holds the tensor and they lie so.
pub(crate) fn into_values<E: Real>(tensor: FlexTensor) -> Vec<E> {
    tensor.into_data().try_into_vec::<E>().expect("the number type that the operator was recorded with")
}

/// A tensor that takes over `values`.
pub(crate) fn tensor<E: Real, const D: usize>(values: Vec<E>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(burn::tensor::TensorData::new(values, Shape::from(shape.to_vec())))
}

/// The two dimensions of a matrix.
pub(crate) fn dims2(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.shape();
    assert_eq!(shape.num_dims(), 2, "expected a matrix, found shape {shape:?}");
    [shape[0], shape[1]]
}

/// Whether the tensor is in `f64`, the reference type; everything else is taken to be `f32`.
pub(crate) fn is_f64(tensor: &FlexTensor) -> bool {
    tensor.dtype() == DType::F64
}

/// Whether the hand-written operators can run: the tensor is in this process's memory, with or without gradients.
/// Every other device takes the composed operators.
pub(crate) fn on_flex<const D: usize>(tensor: &Tensor<D>) -> bool {
    let device = tensor.device();
    device == Device::flex() || device == Device::flex().autodiff()
}

/// Calls `$body` with `$E` standing for the number type of `$tensor`.
macro_rules! with_real {
    ($tensor:expr, $E:ident => $body:expr) => {
        if $crate::ops::storage::is_f64($tensor) {
            type $E = f64;
            $body
        } else {
            type $E = f32;
            $body
        }
    };
}
pub(crate) use with_real;

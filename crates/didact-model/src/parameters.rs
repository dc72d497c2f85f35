//! A model's parameters: one ordered list, by the names of the checkpoint, to which layers hold numbers.
//!
//! The optimiser works on this list directly and changes values in place: on the CPU a buffer keeps its address for as
//! long as the model lives, and is never copied behind the caller's back. Values on another device are copied to this
//! process's memory to be read, and back when they were changed.

use burn::backend::{Autodiff, Flex};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use burn_autodiff::NodeId;
use burn_flex::FlexTensor;

use crate::ops::storage::{Tracked, contiguous, on_flex, values};

/// A parameter's place in its [`ParameterSet`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId(usize);

impl ParameterId {
    /// The place, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

/// The number themselves, on the device that records gradients.
#[derive(Debug, Clone)]
pub enum ParameterValue {
    /// A gain or bias.
    Vector(Tensor<1>),
    /// A weight matrix.
    Matrix(Tensor<2>),
}

impl ParameterValue {
    fn new(values: Vec<f32>, shape: &[usize], device: &Device) -> Self {
        match *shape {
            [n] => Self::Vector(Tensor::from_data(TensorData::new(values, [n]), device)),
            [n, m] => Self::Matrix(Tensor::from_data(TensorData::new(values, [n, m]), device)),
            _ => panic!("a parameter has one or two dimensions, found shape {shape:?}"),
        }
    }

    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(t) => t.dims().to_vec(),
            Self::Matrix(t) => t.dims().to_vec(),
        }
    }

    fn tracked(self, trainable: bool) -> Self {
        match self {
            Self::Vector(t) => Self::Vector(t.set_require_grad(trainable)),
            Self::Matrix(t) => Self::Matrix(t.set_require_grad(trainable)),
        }
    }

    /// The numbers with their place in the graph of the next backward pass.
    pub(crate) fn tracked_primitive(self) -> Tracked {
        let tracked = match self {
            Self::Vector(t) => t.try_into_primitive::<Autodiff<Flex>>(),
            Self::Matrix(t) => t.try_into_primitive::<Autodiff<Flex>>(),
        };
        tracked.expect("parameters live on the in-process device, with gradients recorded")
    }

    /// The values on the CPU's device, which must be where they are.
    pub(crate) fn primitive(self) -> FlexTensor {
        let primitive = match self {
            Self::Vector(t) if t.device().is_autodiff() => t.inner().try_into_primitive::<Flex>(),
            Self::Matrix(t) if t.device().is_autodiff() => t.inner().try_into_primitive::<Flex>(),
            Self::Vector(t) => t.try_into_primitive::<Flex>(),
            Self::Matrix(t) => t.try_into_primitive::<Flex>(),
        };
        primitive.expect("only called for values on the CPU")
    }

    /// A copy of the values, wherever they are.
    fn download(self) -> Vec<f32> {
        into_f32(match self {
            Self::Vector(t) => t.inner().into_data(),
            Self::Matrix(t) => t.inner().into_data(),
        })
    }

    /// The same values, unknown to earlier backward passes.
    fn detached(self) -> Self {
        match self {
            Self::Vector(t) => Self::Vector(Tensor::from_inner(t.inner())),
            Self::Matrix(t) => Self::Matrix(Tensor::from_inner(t.inner())),
        }
    }

    fn is_on_cpu(&self) -> bool {
        match self {
            Self::Vector(t) => on_flex(t),
            Self::Matrix(t) => on_flex(t),
        }
    }
}

/// One parameter.
#[derive(Debug)]
pub struct Parameter {
    name: String,
    /// `None` only while [`ParameterSet::data_mut`] has the value taken out.
    value: Option<ParameterValue>,
    trainable: bool,
    decay: bool,
}

impl Parameter {
    /// The name in the checkpoint, or PEFT's name for an adapter's matrix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The numbers.
    ///
    /// # Panics
    /// If a closure of [`ParameterSet::data_mut`] panicked on this parameter before.
    pub fn value(&self) -> &ParameterValue {
        self.value.as_ref().expect("no update of this parameter was abandoned half-way")
    }

    /// Row-major shape, of one or two dimensions.
    pub fn shape(&self) -> Vec<usize> {
        self.value().shape()
    }

    /// How many numbers it holds.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether training changes it.
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// Whether weight decay applies to it.
    pub fn decays(&self) -> bool {
        self.decay
    }

    /// A copy of the numbers, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        let value = self.value().clone();
        if !value.is_on_cpu() {
            return value.download();
        }
        values::<f32>(&contiguous(&value.primitive())).to_vec()
    }
}

/// A model's parameters in the order of the forward pass, adapters last.
#[derive(Debug)]
pub struct ParameterSet {
    parameters: Vec<Parameter>,
    device: Device,
}

impl ParameterSet {
    /// An empty set on `device`, with gradients recorded.
    pub fn new(device: &Device) -> Self {
        let device = if device.is_autodiff() { device.clone() } else { device.clone().autodiff() };
        Self { parameters: Vec::new(), device }
    }

    /// Whether the numbers are in this process's memory, where they are changed in place.
    pub fn is_on_cpu(&self) -> bool {
        self.device == Device::flex()
    }

    /// Appends a parameter.
    ///
    /// # Panics
    /// If the shape has not one or two dimensions, does not fit the number of values, or the name is taken.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        values: Vec<f32>,
        trainable: bool,
        decay: bool,
    ) -> ParameterId {
        let name = name.into();
        assert!(self.id(&name).is_none(), "parameter `{name}` exists already");
        assert_eq!(shape.iter().product::<usize>(), values.len(), "parameter `{name}` of shape {shape:?}");
        let value = ParameterValue::new(values, shape, &self.device).tracked(trainable);
        self.parameters.push(Parameter { name, value: Some(value), trainable, decay });
        ParameterId(self.parameters.len() - 1)
    }

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// The parameter of that id.
    ///
    /// # Panics
    /// If the id is of another, larger set.
    pub fn get(&self, id: ParameterId) -> &Parameter {
        &self.parameters[id.0]
    }

    /// The id of the parameter of that name.
    pub fn id(&self, name: &str) -> Option<ParameterId> {
        self.parameters.iter().position(|p| p.name == name).map(ParameterId)
    }

    /// All parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Parameter)> {
        self.parameters.iter().enumerate().map(|(index, p)| (ParameterId(index), p))
    }

    /// The parameters that training changes, in order.
    pub fn trainable(&self) -> impl Iterator<Item = (ParameterId, &Parameter)> {
        self.iter().filter(|(_, p)| p.trainable)
    }

    /// How many numbers training changes.
    pub fn trainable_elements(&self) -> usize {
        self.trainable().map(|(_, p)| p.elements()).sum()
    }

    /// Lets training change the parameter, or not. Gradients of earlier backward passes no longer belong to it.
    pub fn set_trainable(&mut self, id: ParameterId, trainable: bool) {
        let parameter = &mut self.parameters[id.0];
        parameter.trainable = trainable;
        parameter.value = parameter.value.take().map(|value| value.detached().tracked(trainable));
    }

    /// Removes the parameters from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.parameters.truncate(len);
    }

    /// Lets `change` work on the numbers, row-major: in place on the CPU, on a copy that is then sent back elsewhere.
    ///
    /// Take what is needed of the gradients first: a backward pass done before this call no longer finds the parameter.
    ///
    /// # Panics
    /// If something else still holds the buffer, such as a loss that has not been dropped: changing it then would need
    /// a copy.
    pub fn data_mut<R>(&mut self, id: ParameterId, change: impl FnOnce(&mut [f32]) -> R) -> R {
        let parameter = &mut self.parameters[id.0];
        let value = parameter.value.take().expect("no update of this parameter was abandoned half-way");
        if !value.is_on_cpu() {
            let shape = value.shape();
            let mut data = value.download();
            let result = change(&mut data);
            parameter.value = Some(ParameterValue::new(data, &shape, &self.device).tracked(parameter.trainable));
            return result;
        }
        let mut primitive = value.primitive();
        let result = {
            let Some(data) = primitive.try_storage_mut::<f32>() else {
                panic!("parameter `{}` is still in use: drop the loss and its tensors before updating", parameter.name)
            };
            change(data)
        };
        parameter.value = Some(restore(primitive, parameter.trainable));
        result
    }

    /// Lets `read` look at the numbers, row-major; on the CPU without a copy.
    pub fn with_data<R>(&self, id: ParameterId, read: impl FnOnce(&[f32]) -> R) -> R {
        let value = self.get(id).value().clone();
        if !value.is_on_cpu() {
            return read(&value.download());
        }
        read(values::<f32>(&contiguous(&value.primitive())))
    }

    /// The parameter's gradient, row-major, or `None` if the loss does not depend on it.
    pub fn gradient(&self, gradients: &Gradients, id: ParameterId) -> Option<Vec<f32>> {
        let data = match self.get(id).value() {
            ParameterValue::Vector(t) => t.grad(gradients)?.into_data(),
            ParameterValue::Matrix(t) => t.grad(gradients)?.into_data(),
        };
        Some(into_f32(data))
    }

    /// As [`gradient`](Self::gradient), moving the buffer out instead of copying it.
    pub fn take_gradient(&self, gradients: &mut Gradients, id: ParameterId) -> Option<Vec<f32>> {
        let data = match self.get(id).value() {
            ParameterValue::Vector(t) => t.grad_remove(gradients)?.into_data(),
            ParameterValue::Matrix(t) => t.grad_remove(gradients)?.into_data(),
        };
        Some(into_f32(data))
    }

    /// The place of the parameter in the graph of the next backward pass; `None` on another device than the CPU.
    pub(crate) fn node(&self, id: ParameterId) -> Option<NodeId> {
        let value = self.get(id).value();
        value.is_on_cpu().then(|| value.clone().tracked_primitive().id())
    }

    /// A matrix, without gradients when `recorded` is false.
    pub(crate) fn matrix(&self, id: ParameterId, recorded: bool) -> Tensor<2> {
        let parameter = self.get(id);
        match parameter.value() {
            ParameterValue::Matrix(t) if recorded => t.clone(),
            ParameterValue::Matrix(t) => t.clone().inner(),
            ParameterValue::Vector(_) => panic!("parameter `{}` is a vector, a matrix is needed", parameter.name),
        }
    }

    /// A vector, without gradients when `recorded` is false.
    pub(crate) fn vector(&self, id: ParameterId, recorded: bool) -> Tensor<1> {
        let parameter = self.get(id);
        match parameter.value() {
            ParameterValue::Vector(t) if recorded => t.clone(),
            ParameterValue::Vector(t) => t.clone().inner(),
            ParameterValue::Matrix(_) => panic!("parameter `{}` is a matrix, a vector is needed", parameter.name),
        }
    }
}

fn into_f32(data: TensorData) -> Vec<f32> {
    data.try_into_vec::<f32>().expect("gradients of f32 parameters are f32")
}

/// The primitive as a parameter again, on the device that records gradients.
fn restore(primitive: FlexTensor, trainable: bool) -> ParameterValue {
    let value = match primitive.layout().num_dims() {
        1 => ParameterValue::Vector(Tensor::from_inner(Tensor::from_primitive::<Flex>(primitive))),
        _ => ParameterValue::Matrix(Tensor::from_inner(Tensor::from_primitive::<Flex>(primitive))),
    };
    value.tracked(trainable)
}

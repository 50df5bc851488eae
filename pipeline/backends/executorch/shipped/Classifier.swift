// @MODEL@ on iPhone and Mac, by ExecuTorch. Add @FILE@ and labels.txt to the app's target, and in Xcode by
// File > Add Package Dependencies the package of pytorch/executorch, branch swiftpm-@EXECUTORCH@:
// executorch, backend_xnnpack, kernels_optimized; with -all_load under Other Linker Flags.
import ExecuTorch
import Foundation

final class Classifier {
  static let batch = @BATCH@, channels = @CHANNELS@, height = @HEIGHT@, width = @WIDTH@, classes = @CLASSES@
  static let mean: [Float] = [@MEAN@], std: [Float] = [@STD@]  // of @LETTERS@ in [0, 1]
  static let weights: [Float] = [@WEIGHTS@]  // of R, G, B in each channel

  private let module: Module
  private let labels: [String]

  init(bundle: Bundle = .main) throws {
    guard let file = bundle.path(forResource: "@STEM@", ofType: "pte"),
      let names = bundle.url(forResource: "labels", withExtension: "txt")
    else { throw CocoaError(.fileNoSuchFile) }
    labels = try String(contentsOf: names, encoding: .utf8).components(separatedBy: "\n")
    module = Module(filePath: file)
    try module.load("forward")
  }

  /// The class of one image: height x width pixels of R, G, B, 8 bits each; see preprocessing.txt.
  func classify(rgb: [UInt8]) throws -> String {
    let plane = Self.height * Self.width
    precondition(rgb.count == 3 * plane, "give \(Self.height) x \(Self.width) pixels of R, G, B")
    var input = [Float](repeating: 0, count: Self.batch * Self.channels * plane)  // of the batch, the first
    for channel in 0..<Self.channels {
      for i in 0..<plane {
        let level = (0..<3).reduce(Float(0)) { $0 + Self.weights[3 * channel + $1] * Float(rgb[3 * i + $1]) }
        input[channel * plane + i] = (level / 255 - Self.mean[channel]) / Self.std[channel]
      }
    }
    let logits = try self.logits(input).prefix(Self.classes)
    return labels[logits.indices.max { logits[$0] < logits[$1] }!]
  }

  /// batch * channels * height * width values in, batch * classes out; golden/ has some to try.
  func logits(_ input: [Float]) throws -> [Float] {
    let image = Tensor<Float>(input, shape: [Self.batch, Self.channels, Self.height, Self.width])
    return try Tensor<Float>(module.forward(image)).scalars()
  }
}

// @MODEL@ on iPhone and Mac, by ExecuTorch. Add @FILE@ and labels.txt to the app's target, and in Xcode by
// File > Add Package Dependencies the package of pytorch/executorch, branch swiftpm-@EXECUTORCH@:
// executorch, backend_xnnpack, kernels_optimized; with -all_load under Other Linker Flags.
import ExecuTorch
import Foundation

final class Classifier {
  static let batch = @BATCH@, size = @SIZE@, classes = @CLASSES@
  static let mean: [Float] = [@MEAN@], std: [Float] = [@STD@]  // of R, G, B in [0, 1]

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

  /// The class of one image: size x size pixels of R, G, B, 8 bits each; see preprocessing.txt.
  func classify(rgb: [UInt8]) throws -> String {
    let plane = Self.size * Self.size
    precondition(rgb.count == 3 * plane, "give \(Self.size) x \(Self.size) pixels of R, G, B")
    var input = [Float](repeating: 0, count: Self.batch * 3 * plane)  // R, then G, then B; the batch's first image
    for channel in 0..<3 {
      for i in 0..<plane {
        input[channel * plane + i] = (Float(rgb[3 * i + channel]) / 255 - Self.mean[channel]) / Self.std[channel]
      }
    }
    let logits = try self.logits(input).prefix(Self.classes)
    return labels[logits.indices.max { logits[$0] < logits[$1] }!]
  }

  /// batch * 3 * size * size values in, batch * classes out; golden/ has some to try.
  func logits(_ input: [Float]) throws -> [Float] {
    let image = Tensor<Float>(input, shape: [Self.batch, 3, Self.size, Self.size])
    return try Tensor<Float>(module.forward(image)).scalars()
  }
}

// @MODEL@ on Android, by ExecuTorch. Put @FILE@ and labels.txt into src/main/assets, and into build.gradle.kts:
//   implementation("org.pytorch:executorch-android:@EXECUTORCH@")    // the version that the file was made with
import android.content.Context
import android.graphics.Bitmap
import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Classifier(context: Context) {
    private val labels = context.assets.open("labels.txt").bufferedReader().readLines()
    private val module = Module.load(fileOf(context).path)

    /** The class of a bitmap; see preprocessing.txt for how it becomes SIZE x SIZE pixels. */
    fun classify(bitmap: Bitmap): String {
        require(bitmap.width == SIZE && bitmap.height == SIZE) { "give a bitmap of $SIZE x $SIZE pixels" }
        val pixels = IntArray(SIZE * SIZE)
        bitmap.getPixels(pixels, 0, SIZE, 0, 0, SIZE, SIZE)
        val input = FloatArray(BATCH * 3 * SIZE * SIZE) // R, then G, then B; the first image of the batch
        for (channel in 0 until 3) {
            for (i in pixels.indices) {
                val level = pixels[i] shr (16 - 8 * channel) and 0xFF
                input[channel * SIZE * SIZE + i] = ((level / 255.0 - MEAN[channel]) / STD[channel]).toFloat()
            }
        }
        val logits = logits(input)
        return labels[(0 until CLASSES).maxByOrNull { logits[it] }!!]
    }

    /** BATCH * 3 * SIZE * SIZE values in, BATCH * CLASSES out; golden/ has some to try. */
    fun logits(input: FloatArray): FloatArray {
        val shape = longArrayOf(BATCH.toLong(), 3, SIZE.toLong(), SIZE.toLong())
        return module.forward(EValue.from(Tensor.fromBlob(input, shape)))[0].toTensor().dataAsFloatArray
    }

    private companion object {
        const val BATCH = @BATCH@
        const val SIZE = @SIZE@
        const val CLASSES = @CLASSES@
        val MEAN = doubleArrayOf(@MEAN@) // of R, G, B in [0, 1]
        val STD = doubleArrayOf(@STD@)

        /** ExecuTorch reads a file, and an asset is none: a copy, in the app's own folder, by its digest. */
        fun fileOf(context: Context): File {
            val file = File(context.filesDir, "@DIGEST@-@FILE@")
            if (!file.exists()) {
                val fresh = File(context.filesDir, "${file.name}.new")
                context.assets.open("@FILE@").use { asset -> fresh.outputStream().use { asset.copyTo(it) } }
                fresh.renameTo(file)
            }
            return file
        }
    }
}

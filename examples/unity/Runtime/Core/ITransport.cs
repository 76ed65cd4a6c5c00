using System;
using System.Threading;
using System.Threading.Tasks;

namespace PersonaChat
{
    /// <summary>An HTTP answer that came as a whole.</summary>
    public sealed class HttpReply
    {
        /// <summary>Makes an answer.</summary>
        /// <param name="status">The HTTP status, 100 to 599.</param>
        /// <param name="body">The body; "" where there is none.</param>
        public HttpReply(int status, string body)
        {
            Status = status;
            Body = body;
        }

        /// <summary>The HTTP status, 100 to 599.</summary>
        public int Status { get; }

        /// <summary>The body, decoded; "" where there is none.</summary>
        public string Body { get; }
    }

    /// <summary>
    /// How bytes travel: UnityWebRequest in Unity, HttpWebRequest in the console program, a script in the tests.
    /// A line that breaks or stays silent for too long is told by an <see cref="EngineException"/> with the code
    /// <see cref="EngineException.Unreachable"/>; a status of any kind is an answer and no error.
    /// </summary>
    public interface ITransport
    {
        /// <summary>Posts JSON.</summary>
        /// <param name="url">The address.</param>
        /// <param name="json">The body, sent as UTF-8 and application/json.</param>
        /// <param name="cancel">Breaks the request off.</param>
        /// <exception cref="EngineException">No answer came.</exception>
        /// <exception cref="OperationCanceledException">It was broken off.</exception>
        Task<HttpReply> PostAsync(string url, string json, CancellationToken cancel);

        /// <summary>Gets a stream and hands its bytes on as they come.</summary>
        /// <param name="url">The address.</param>
        /// <param name="onBytes">
        /// Gets a buffer and how many of its bytes count; the buffer may be used again after the call. Called only
        /// where the status is 200. What it throws ends the request and comes out of this method.
        /// </param>
        /// <param name="cancel">Breaks the request off.</param>
        /// <returns>The HTTP status, once the stream has ended.</returns>
        /// <exception cref="EngineException">No answer came, or the stream broke.</exception>
        /// <exception cref="OperationCanceledException">It was broken off.</exception>
        Task<int> GetAsync(string url, Action<byte[], int> onBytes, CancellationToken cancel);

        /// <summary>
        /// Waits. This is the transport's because Task.Delay needs a timer's thread, which Unity's web builds lack,
        /// and because a test need not wait at all.
        /// </summary>
        /// <param name="milliseconds">How long, in milliseconds of real time.</param>
        /// <param name="cancel">Ends the wait.</param>
        /// <exception cref="OperationCanceledException">The wait was ended.</exception>
        Task DelayAsync(int milliseconds, CancellationToken cancel);
    }
}

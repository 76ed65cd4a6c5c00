using System;

namespace PersonaChat
{
    /// <summary>How often a turn is sent, and how long to wait before the next try.</summary>
    public sealed class RetryPolicy
    {
        private const int LongestMs = 8000;

        /// <summary>Makes a policy.</summary>
        /// <param name="tries">How often a turn is sent at most, 1 or more.</param>
        /// <param name="firstDelayMs">
        /// Milliseconds before the second try, 0 or more; each later wait is twice as long, 8 seconds at most.
        /// </param>
        /// <exception cref="ArgumentOutOfRangeException">A number is too small.</exception>
        public RetryPolicy(int tries = 4, int firstDelayMs = 500)
        {
            if (tries < 1)
            {
                throw new ArgumentOutOfRangeException("tries", "must be 1 or more");
            }
            if (firstDelayMs < 0)
            {
                throw new ArgumentOutOfRangeException("firstDelayMs", "must be 0 or more");
            }
            Tries = tries;
            FirstDelayMs = firstDelayMs;
        }

        /// <summary>How often a turn is sent at most.</summary>
        public int Tries { get; }

        /// <summary>Milliseconds before the second try.</summary>
        public int FirstDelayMs { get; }

        /// <summary>Returns how many milliseconds to wait.</summary>
        /// <param name="failed">How many tries have failed, 1 or more.</param>
        public int DelayMs(int failed)
        {
            return (int)Math.Min(LongestMs, FirstDelayMs * Math.Pow(2, failed - 1));
        }
    }
}

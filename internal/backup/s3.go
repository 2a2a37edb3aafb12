package backup

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/flocker-io/flocker/internal/volume"
)

// bucket is a store in one of S3. Where that is and who may use it comes from the
// environment, by the names that other tools of S3 know.
type bucket struct {
	client       *s3.Client
	name, prefix string // the prefix is "" or ends in a slash
}

func openS3(ctx context.Context, u *url.URL) (Store, error) {
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, volume.Errorf(volume.CodeInvalid, "%.100q is no place for backups", u.Redacted()).
			WithHint("give s3://BUCKET/PREFIX; keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server from AWS_ENDPOINT_URL")
	}
	// Not from a machine of Amazon's own: elsewhere that only takes time to fail.
	cfg, err := config.LoadDefaultConfig(ctx, config.WithEC2IMDSClientEnableState(imds.ClientDisabled))
	if err != nil {
		return nil, volume.Errorf(volume.CodeInvalid, "what the environment says of S3 cannot be read: %v", err)
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return nil, volume.Errorf(volume.CodeDenied, "there are no keys for bucket %.100q", u.Host).
			WithHint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for one of ~/.aws/credentials")
	}
	cfg.Region = cmp.Or(cfg.Region, "us-east-1")
	b := &bucket{name: u.Host, prefix: strings.Trim(u.Path, "/")}
	if b.prefix != "" {
		b.prefix += "/"
	}
	b.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		// Other servers than Amazon's have seldom a name for each bucket, and not all know its
		// newer checksums. What is sent is signed with its own, and what is read is compared here.
		o.UsePathStyle = cmp.Or(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL")) != ""
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	return b, nil
}

func (b *bucket) key(name string) *string { return aws.String(b.prefix + name) }

func (b *bucket) Put(ctx context.Context, name string, content []byte) error {
	_, err := b.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.name, Key: b.key(name), Body: bytes.NewReader(content)})
	return b.refine(err)
}

// PutNew asks first, for there are servers that do not mind If-None-Match, and some that refuse it:
// with these it is only not exact when two come at the same moment.
func (b *bucket) PutNew(ctx context.Context, name string, content []byte) error {
	_, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: b.key(name)})
	if err = b.refine(err); err == nil {
		return fs.ErrExist
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for range 3 {
		// A conflict is with somebody who puts or removes it just now: who comes again is told.
		if err = b.putNew(ctx, name, content); code(err) != "ConditionalRequestConflict" {
			break
		}
		if !wait(ctx, time.Second) {
			return context.Cause(ctx)
		}
	}
	if code(err) == "NotImplemented" {
		return b.Put(ctx, name, content)
	}
	return b.refine(err)
}

func (b *bucket) putNew(ctx context.Context, name string, content []byte) error {
	_, err := b.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.name, Key: b.key(name), Body: bytes.NewReader(content), IfNoneMatch: aws.String("*")})
	return err
}

// wait is false when ctx has ended before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// exclusive puts an object that is there as a new one: who minds If-None-Match refuses it.
func (b *bucket) exclusive(ctx context.Context, name string, content []byte) (bool, error) {
	err := b.putNew(ctx, name, content)
	switch code(err) {
	case "PreconditionFailed", "ConditionalRequestConflict":
		return true, nil
	case "NotImplemented":
		return false, nil
	}
	return false, b.refine(err)
}

func (b *bucket) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	o, err := b.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: b.key(name)})
	if err != nil {
		return nil, b.refine(err)
	}
	defer o.Body.Close()
	return readLimited(o.Body, limit)
}

func (b *bucket) List(ctx context.Context, prefix string, f func(name string, size int64) error) error {
	pages := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: b.key(prefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return b.refine(err)
		}
		for _, o := range page.Contents {
			if err := f(strings.TrimPrefix(aws.ToString(o.Key), b.prefix), aws.ToInt64(o.Size)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bucket) Remove(ctx context.Context, name string) error {
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: b.key(name)})
	return gone(b.refine(err))
}

// code is what a server calls an error; "" when it is none of a server.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return ""
}

// refine gives what a server says its meaning here.
func (b *bucket) refine(err error) error {
	switch code(err) {
	case "":
		return err
	case "NoSuchKey", "NotFound":
		return fs.ErrNotExist
	case "PreconditionFailed":
		return fs.ErrExist
	case "NoSuchBucket":
		return volume.Errorf(volume.CodeNotFound, "there is no bucket %q", b.name).WithHint("make it first; flockctl makes none")
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch":
		return volume.Errorf(volume.CodeDenied, "bucket %q is not for these keys: %s", b.name, code(err)).
			WithHint("look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and at what they may do")
	}
	return fmt.Errorf("bucket %s: %w", b.name, err)
}

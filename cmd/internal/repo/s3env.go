package repo

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"gopkg.in/ini.v1"
)

// s3Settings is where an S3 service is and who asks it.
type s3Settings struct {
	endpoint *url.URL
	region   string
	virtual  bool // the bucket may stand in the host's name
	creds    *credentials.Credentials
	roots    *x509.CertPool // nil: the system's
}

// s3Environment gives the settings as other S3 programs find them: the variables AWS_ENDPOINT_URL_S3,
// AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
// AWS_PROFILE and AWS_CA_BUNDLE; MINIO_ROOT_USER and its kin; the files ~/.aws/credentials and ~/.aws/config, or those
// that AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE name; on Amazon's own machines the role of the machine.
func s3Environment() (*s3Settings, error) {
	profile, err := awsProfile()
	if err != nil {
		return nil, err
	}
	raw := cmp.Or(os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"), profile["endpoint_url"])
	set := &s3Settings{
		region:  cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"), profile["region"], "us-east-1"),
		virtual: raw == "",
	}
	set.endpoint, err = url.Parse(cmp.Or(raw, "https://s3.amazonaws.com"))
	if err != nil || set.endpoint.Host == "" || strings.Trim(set.endpoint.Path, "/") != "" || set.endpoint.User != nil ||
		set.endpoint.Scheme != "http" && set.endpoint.Scheme != "https" {
		return nil, errors.New("the S3 endpoint (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or endpoint_url) is to be http://HOST[:PORT] or https://HOST[:PORT]")
	}
	if file := os.Getenv("AWS_CA_BUNDLE"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("AWS_CA_BUNDLE: %w", err)
		}
		if set.roots = x509.NewCertPool(); !set.roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("AWS_CA_BUNDLE: %s holds no certificate", file)
		}
	}
	chain := []credentials.Provider{&credentials.EnvAWS{}, &credentials.EnvMinio{}, &credentials.FileAWSCredentials{}}
	// Elsewhere nobody answers at the address of Amazon's metadata, which takes long to find out.
	if raw == "" || os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "" || os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") != "" {
		chain = append(chain, &credentials.IAM{Region: set.region})
	}
	set.creds = credentials.NewChainCredentials(chain)
	v, err := set.creds.GetWithContext(nil)
	if err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return nil, errors.New("no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or write ~/.aws/credentials")
	}
	return set, nil
}

// awsProfile gives what the chosen profile of ~/.aws/config says. No file is no profile.
func awsProfile() (map[string]string, error) {
	file := os.Getenv("AWS_CONFIG_FILE")
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil
		}
		file = filepath.Join(home, ".aws", "config")
	}
	name := cmp.Or(os.Getenv("AWS_PROFILE"), "default")
	f, err := ini.LoadSources(ini.LoadOptions{AllowNestedValues: true}, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: it can't be read as a file of AWS settings", file) // the error may quote a secret
	}
	for _, section := range []string{"profile " + name, name} {
		if f.HasSection(section) {
			return f.Section(section).KeysHash(), nil
		}
	}
	return nil, nil
}
